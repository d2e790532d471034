"""Files that others wrote, read as data: a value comes back, or an error that names the file.

What lies under the name of a file is often something else: a pointer of Git LFS, a web page, text
with a byte-order mark, a link. Each is named as what it is.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from safetensors.numpy import load

POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_TEXT = 2**28  # bytes: the longest index or tokenizer of a published model is a tenth of it
LARGEST_EMPTY = 2**24  # bytes that an array without values would have if its axes were not empty


def open_file(path: str | Path) -> BinaryIO:
    """A regular file, opened for reading; neither a link nor a device that would not end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a link, a folder or something else that is no regular file.
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
        raise ValueError(f"{path} is no regular file.")
    return os.fdopen(descriptor, "rb")


def refuse_link(path: Path) -> None:
    """ValueError where a path is a symbolic link: it may lead out of the folder it came in."""
    if path.is_symlink():
        raise ValueError(
            f"{path} is a symbolic link, which is not followed: put {path.resolve()} in its place."
        )


def refuse_stand_in(path: str | Path) -> None:
    """ValueError where a file holds what is often found in place of its content."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file.")
    with path.open("rb") as file:
        start = file.read(256)
    if start.startswith(POINTER):
        raise ValueError(
            f"{path} is a pointer of Git LFS and not the file itself: run `git lfs pull` in its "
            "repository, or download it again with `hf download`."
        )
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{path} is a web page and not the file itself: download it again.")
    for mark, name in (
        (b"\xef\xbb\xbf", "UTF-8"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ):
        if start.startswith(mark) and path.suffix in (".json", ".txt", ".bddl", ".csv"):
            raise ValueError(
                f"{path} begins with the byte-order mark of {name}: save it as UTF-8 without one."
            )


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something else than text in UTF-8.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    refuse_stand_in(path)
    if path.stat().st_size > LARGEST_TEXT:
        raise ValueError(f"{path} has {path.stat().st_size >> 20} MiB: it is no such text.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}.") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no JSON, a number that is not finite, or something else than an object.
    """
    text = read_text(path)
    try:
        content = json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text:.40} is no finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(text)


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such file, damaged, or of a type that NumPy does not have.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    refuse_stand_in(path)
    with reading(path, "a whole safetensors file"):
        return {name: _sound(name, array) for name, array in load(path.read_bytes()).items()}


def _sound(name: str, array: np.ndarray) -> np.ndarray:
    """The array, without what NumPy would trust and a file need not keep to."""
    if not array.size and math.prod(max(n, 1) for n in array.shape) > LARGEST_EMPTY:
        raise ValueError(f"{name} is empty and has the shape {array.shape}")
    return np.asarray(array.view(np.uint8) != 0) if array.dtype == bool else array


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """What goes wrong inside becomes a ValueError that names the file and what it should be.

    A missing file and kinds of ValueError that say more remain themselves.
    """
    try:
        yield
    except (FileNotFoundError, ImportError, KeyboardInterrupt):
        raise
    except ValueError as error:
        if type(error) is not ValueError or str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged or hostile file does to its reader
        raise ValueError(
            f"{path} is not {expected} ({type(error).__name__}: {error!s:.200})."
        ) from error
