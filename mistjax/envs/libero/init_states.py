"""LIBERO's fixed start states, read as data.

LIBERO's files are what `torch.save` made of one float64 array: a zip archive around a pickle, which
`mistjax.pickled` reads without running it; LIBERO-PRO's are NumPy archives with the array `states`,
and some of LIBERO-Plus's hold one state alone. So files by others are safe to open, and PyTorch is
not needed.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mistjax import pickled
from mistjax.untrusted import read_bytes, reading

MAX_BYTES = 100_000_000


def read_init_states(path: str | Path) -> Float[np.ndarray, "states size"]:
    """The start states of a task, each (time, qpos, qvel); one state alone is one row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one plain float64 matrix as PyTorch or NumPy saves it; says
            where it stops being one.
    """
    path = Path(path)
    content = io.BytesIO(read_bytes(path))
    with reading(path, "a plain float64 matrix"):
        if not zipfile.is_zipfile(content):
            raise ValueError(
                f"{path} is not a zip archive: expected an init file made by torch.save."
            )
        if path.suffix == ".npz":
            return _checked(_numpy(content))
        with zipfile.ZipFile(content) as archive:
            return _matrix(_stream(archive, len(content.getbuffer())))


def _numpy(content: io.BytesIO) -> object:
    with zipfile.ZipFile(content) as archive:
        entries = archive.infolist()
        if [entry.filename for entry in entries] != ["states.npy"]:
            raise ValueError(f"it holds {archive.namelist()!s:.200}: expected one array, states.")
        if entries[0].file_size > MAX_BYTES:
            raise ValueError(f"its states take {entries[0].file_size} bytes unpacked.")
    with np.load(content, allow_pickle=False) as arrays:
        return arrays["states"]


def _stream(archive: zipfile.ZipFile, size: int) -> bytes:
    entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
    if len(entries) != 1:
        raise ValueError(f"it holds {archive.namelist()!s:.200}: expected one data.pkl.")
    (entry,) = entries
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
        raise ValueError("its data.pkl is compressed, which torch.save never does.")
    return archive.read(entry)


def _matrix(stream: bytes) -> Float[np.ndarray, "states size"]:
    try:
        states = pickled.read(io.BytesIO(stream), len(stream), pickled.MAKERS, pickled.NAMES)
    except pickled.PickleRefused as error:
        raise ValueError(f"it is not a plain float64 matrix: it {error}") from error
    return _checked(states)


def _checked(states: object) -> Float[np.ndarray, "states size"]:
    if not isinstance(states, np.ndarray):
        raise ValueError("it holds something other than an array.")
    if states.dtype != np.float64:
        raise ValueError(f"it has the type {states.dtype}, expected float64.")
    if states.ndim not in (1, 2):
        raise ValueError(f"it has the shape {states.shape}, expected states and their size.")
    if not np.isfinite(states).all():
        raise ValueError("it holds numbers that are not finite.")
    return np.atleast_2d(states).astype(np.float64)
