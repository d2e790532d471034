"""Reads files by others as data: a value comes back, or an error that names the file.

What has a file's name is often something else: a Git LFS pointer, a web page, text with a
byte-order mark, a link. The error says which.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

POINTER = b"version https://git-lfs.github.com/spec/"
MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
LARGEST_NPZ = 2**32  # bytes of all arrays, unpacked
LARGEST_EMPTY = 2**24  # values that an empty array would have if none of its axes were


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, opened for reading; neither a link nor an endless device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a link, a folder or anything else that is not a regular file.
    """
    path = Path(path)
    refuse_link(path)
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file.")
    return os.fdopen(descriptor, "rb")


def refuse_link(path: Path) -> None:
    """ValueError where a path is a symbolic link: it may lead out of the folder it came in."""
    if path.is_symlink():
        raise ValueError(
            f"{path} is a symbolic link, which is not followed: put {path.resolve()} in its place."
        )


def read_bytes(path: str | Path) -> bytes:
    """What a file holds, links followed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, or what is often found in place of a file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist.") from None
    refuse_stand_in(path, content)
    return content


def refuse_stand_in(path: Path, content: bytes | memoryview) -> None:
    """ValueError where a file's content, or its start, is what is often found in its place."""
    start = bytes(content[:256])
    if not start:
        raise ValueError(f"{path} is empty.")
    if start.startswith(POINTER):
        raise ValueError(
            f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` in its "
            "repository, or download it again with `hf download`."
        )
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{path} is a web page and not the file itself: download it again.")


def read_text(path: str | Path, content: bytes | None = None) -> str:
    """The text of a file, or of its content; raises as `read_bytes`, and for what is not UTF-8."""
    if content is None:
        content = read_bytes(path)
    refuse_stand_in(Path(path), content)
    if content.startswith(MARKS):
        raise ValueError(f"{path} begins with a byte order mark: save it as UTF-8 without one.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}).") from None


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; no pickle is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something else, a damaged file, or an array whose shape its bytes do not fill.
    """
    content = io.BytesIO(read_bytes(path))
    with reading(path, "a whole npz file"), zipfile.ZipFile(content) as archive:
        unpacked = 0
        for entry in archive.infolist():
            with archive.open(entry) as member:
                shape, _, dtype = _npy_header(member)
                described = member.tell() + math.prod(shape) * dtype.itemsize
            unpacked += entry.file_size
            if described != entry.file_size or unpacked > LARGEST_NPZ or dtype.hasobject:
                raise ValueError(f"{entry.filename} is {dtype} {shape} in {entry.file_size} bytes")
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            return sound(dict(arrays))


def _npy_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def sound(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays without what NumPy trusts but a file may violate: bytes that are not truth values
    become some, and an empty array with immense axes is refused with a ValueError.
    """
    for name, array in arrays.items():
        if not array.size and math.prod(max(n, 1) for n in array.shape) > LARGEST_EMPTY:
            raise ValueError(f"{name} is empty and has the shape {array.shape}")
    return {
        name: np.asarray(array.view(np.uint8) != 0) if array.dtype == bool else array
        for name, array in arrays.items()
    }


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """What goes wrong inside becomes a ValueError that names the file and what it should be.

    A missing file and our own kinds of ValueError remain of their kind.
    """
    try:
        yield
    except (FileNotFoundError, ImportError, KeyboardInterrupt):
        raise
    except ValueError as error:
        if str(path) in str(error):
            raise
        kind = type(error) if type(error).__module__.startswith("mistjax.") else ValueError
        raise kind(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged or hostile file does to its reader
        raise ValueError(
            f"{path} is not {expected} ({type(error).__name__}: {error!s:.200})."
        ) from error
