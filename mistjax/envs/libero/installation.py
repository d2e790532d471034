"""Finds LIBERO and its assets, and imports it without its questions and downloads.

Left alone, LIBERO asks for a folder on standard input when it is first imported, and downloads its
assets when the first scene is built. `load` answers both beforehand.

`python -m mistjax.envs.libero.installation` unpacks an asset archive that lies beside the project
and says which assets are used; `make libero` ends with it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import logging
import os
import tarfile
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

from mistjax.untrusted import reading

ASSETS_VARIABLE = "MISTJAX_LIBERO_ASSETS"
MODULES = ("libero", "robosuite", "bddl", "numba", "cv2", "easydict", "future", "termcolor")
MARKER = Path("scenes") / "libero_tabletop_base_style.xml"
BESIDE = Path(__file__).parents[4] / "shared" / "libero"
CACHE = Path.home() / ".cache" / "libero" / "assets"
GET_ASSETS = f"hf download lerobot/libero-assets --repo-type dataset --local-dir {CACHE}"


@dataclasses.dataclass(frozen=True)
class Libero:
    """The imported simulator.

    Attributes:
        problems: problem name in lower case -> the class of its scenes.
        controller: robosuite's settings of the arm's controller.
        assets: the folder in use.
        stand_ins: whether some of its meshes or textures are not LIBERO's own.
    """

    problems: dict[str, Any]
    controller: dict[str, Any]
    assets: Path
    stand_ins: bool


def package() -> Path:
    """The folder of `libero.libero`; ImportError names what is missing."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"LIBERO needs {', '.join(missing)}, not installed here: `make libero`.")
    (root,) = importlib.util.find_spec("libero").submodule_search_locations  # type: ignore[union-attr]
    return Path(root) / "libero"


def find_assets(folder: str | Path | None = None) -> Path:
    """The asset folder: what is given, `$MISTJAX_LIBERO_ASSETS`, the package's, its cache, or one
    beside the project.

    Raises:
        FileNotFoundError: none of them holds LIBERO's scenes. One that was named explicitly is
            never passed over.
    """
    named = folder or os.environ.get(ASSETS_VARIABLE)
    places = [Path(named)] if named else [package() / "assets", CACHE, BESIDE / "assets"]
    for place in places:
        if (place / MARKER).exists():
            return place.resolve()
    raise FileNotFoundError(
        f"no LIBERO assets in {', '.join(map(str, places))}: expected a folder with {MARKER}.\n"
        f"Get them with `{GET_ASSETS}`, or set {ASSETS_VARIABLE} to where they are."
    )


def has_stand_ins(folder: Path) -> bool:
    """Whether an asset folder says that some of its meshes or textures are not LIBERO's own."""
    return (folder / "STANDINS.txt").exists()


@functools.cache
def load(assets: str | Path | None = None) -> Libero:
    """Imports LIBERO with an asset folder (see `find_assets`); one folder a process."""
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
        robosuite = importlib.import_module("robosuite")
        controller = robosuite.load_controller_config(default_controller="OSC_POSE")
    return Libero(scenes.TASK_MAPPING, controller, folder, has_stand_ins(folder))


def task_map() -> dict[str, list[str]]:
    """LIBERO's own table: suite -> task names in their order."""
    path = package() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("_libero_suite_task_map", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module.libero_task_map


def unpack(archive: Path, target: Path = CACHE) -> Path:
    """Unpacks an asset archive to `target`, whatever its top folder is called.

    Raises:
        ValueError: a damaged archive, one that reaches out of its folder, or one without LIBERO
            scenes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with reading(archive, "an archive of LIBERO assets"), tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        found = next(Path(folder).rglob(str(MARKER)), None)
        if found is None:
            raise ValueError(f"{archive} holds no {MARKER}: expected an archive of LIBERO assets.")
        found.parents[len(MARKER.parts) - 1].rename(target)
    return target


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
    """No log line below an error while robosuite is imported."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: types.TracebackType | object) -> None:
        logging.disable(self._before)


def main() -> None:
    """Unpacks the archive beside the project if no assets are found; says what is used."""
    try:
        folder = find_assets()
    except FileNotFoundError:
        archive = BESIDE / "assets.tar.xz"
        if not archive.exists():
            raise
        folder = unpack(archive)
    note = " with stand-ins: scores are not comparable to published ones"
    print(f"LIBERO assets: {folder}{note if has_stand_ins(folder) else ''}")


if __name__ == "__main__":
    main()
