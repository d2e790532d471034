"""Files that are whole or absent, alone or together, and readers that name the file they refuse.

A file is written beside its place, synced, and renamed into it: a crash at any moment leaves the
old file or the new one. `save_together` extends this to several files: the index,
a JSON file, holds the SHA-256 of its companions, and its rename is what switches from the old
artefact to the new one. Companions wait under a hidden name and get their own right after;
`load_together` finds them under either. The next write into the folder removes what a crash left
behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mistjax.untrusted import read_bytes, read_text, refuse_stand_in, sound

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..+)?")
_PATIENCE_S = 60.0
_READS = 5  # of an index whose companions are being replaced


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it, durably, when the block ends well.

    The block writes a file, or makes a folder; a folder replaces nothing but an empty one.

    Raises:
        OSError: what the system refused, such as a full disk; names `path`.
    """
    temporary = _beside(path)
    with _naming(path), _open_folder(path.parent) as folder:
        if _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):  # nobody else is writing here
            sweep(path.parent)
        _lock(folder, fcntl.LOCK_SH)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            os.fsync(folder)
        finally:
            _remove(temporary)


def refuse_file(folder: Path) -> None:
    """NotADirectoryError where a file, or a place below one, is given for a folder to write to."""
    for path in (folder, *folder.parents):
        if path.exists() or path.is_symlink():
            if not path.is_dir():
                raise NotADirectoryError(f"{path} is a file: {folder} cannot be a folder.")
            return


def refuse_folder(file: Path) -> None:
    """IsADirectoryError where a folder is given for a file to write, NotADirectoryError for one
    below a file.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder: expected the name of a file to write.")
    refuse_file(file.parent)


def is_leftover(path: Path) -> bool:
    """Whether a name belongs to a write in progress or to one that died."""
    return _TEMPORARY.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Removes what writes that died left in a folder; only while nobody is writing there."""
    for path in folder.iterdir():
        if is_leftover(path):
            _remove(path)


def save_together(
    index: Path, document: Mapping[str, Any], companions: Mapping[str, bytes] | None = None
) -> None:
    """Writes a JSON file and the files that belong to it as one: after a crash at any moment
    `load_together` finds all of the old ones or all of the new ones. Makes the folder.

    Args:
        index: the JSON file.
        document: its content; the key `files` is added where there are companions.
        companions: name in the same folder -> content.

    Raises:
        ValueError: the document has no JSON form (NaN and Inf have none).
        OSError: what the system refused; names the file.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in (companions or {}).items()}
    try:
        named = {**document, "files": digests} if digests else document
        text = json.dumps(named, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{index.name} cannot hold what it was given: {error}") from None
    folder = index.parent
    folder.mkdir(parents=True, exist_ok=True)
    with _naming(index), _open_folder(folder) as handle:
        _wait_alone(folder, handle)
        sweep(folder)
        for name, data in (companions or {}).items():
            _put(folder / _hidden(name, digests[name]), data, handle)
        _put(index, text.encode(), handle)
        for name, digest in digests.items():
            (folder / _hidden(name, digest)).replace(folder / name)
        os.fsync(handle)
        for name in digests:
            for path in folder.glob(_hidden(name, "*")):
                path.unlink(missing_ok=True)


def load_together(
    index: Path, companions: Collection[str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What `save_together` wrote, or an index without digests and the files beside it.

    Args:
        index: the JSON file.
        companions: names of the files that belong to it.

    Returns:
        The document without `files`, and name -> content.

    Raises:
        FileNotFoundError: the index or a companion is missing.
        ValueError: the index is not JSON, or a companion is not the one that it was saved with.
    """
    for _ in range(_READS):
        document = read_json(index)
        digests = document.pop("files", None)
        if digests is None:
            return document, {name: (index.parent / name).read_bytes() for name in companions}
        if not isinstance(digests, dict) or set(digests) != set(companions):
            raise ValueError(
                f"{index} does not name its files {sorted(companions)}: it is damaged."
            )
        found = {name: _companion(index.parent, name, digests[name]) for name in companions}
        wrong = [name for name, content in found.items() if content is None]
        if not wrong:
            return document, {name: content or b"" for name, content in found.items()}
    if missing := [name for name in wrong if not (index.parent / name).exists()]:
        raise FileNotFoundError(f"{index.parent / missing[0]} is missing: {index.name} names it.")
    raise ValueError(
        f"{index.parent / wrong[0]} is not the file that {index.name} was saved with: one of the "
        "two is damaged or comes from elsewhere; make them again, or restore both."
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or a number that is not finite; names the file.
    """
    text = read_text(path)
    try:
        document = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, or was cut off ({error}).") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a JSON {type(document).__name__}: expected an object.")
    return document


def read_tensors(path: Path, content: bytes | None = None) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Args:
        path: the file.
        content: what it holds, if that was read already.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or something else; names the file.
    """
    content = read_bytes(path) if content is None else content
    refuse_stand_in(path, content)
    try:
        return sound(safetensors.numpy.load(content))
    except Exception as error:  # the parser's own, and numpy's on dtypes that it does not know
        raise ValueError(f"{path} is not safetensors, or was cut off ({error}).") from None


def _refuse(number: str) -> float:
    raise ValueError(f"it holds {number}, which is not a finite number")


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse(number)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _hidden(name: str, digest: str) -> str:
    """Where a companion waits for the index that names it."""
    return f".{name}.{digest[:16]}.next"


def _companion(folder: Path, name: str, digest: Any) -> bytes | None:
    """The content of that digest under the file's own name or its hidden one; None if neither."""
    for candidate in (name, _hidden(name, str(digest)), name):  # it may be renamed just now
        with contextlib.suppress(FileNotFoundError):
            content = (folder / candidate).read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:
                return content
    return None


def _put(path: Path, content: bytes, folder: int) -> None:
    """Writes one file, durably, into the open folder."""
    temporary = _beside(path)
    try:
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(path)
        os.fsync(folder)
    finally:
        _remove(temporary)


def _sync(path: Path) -> None:
    """Syncs a file, or a folder with all below it, so that it survives a power cut."""
    for part in (*(path.rglob("*") if path.is_dir() else ()), path):
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int, how: int) -> bool:
    """Takes a lock and says whether that worked; some file systems have none."""
    try:
        fcntl.flock(handle, how)
    except OSError:
        return False
    return True


def _wait_alone(folder: Path, handle: int) -> None:
    """Waits until no other write into the folder is in progress."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another process has been writing into {folder} for {_PATIENCE_S:.0f} s."
                ) from None
            time.sleep(0.05)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes system errors name the file that they are about."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and str(error.filename or ".tmp").endswith((".tmp", ".next")):
            error.filename, error.filename2 = str(path), None
        raise
