"""Pickle files that hold data, and nothing else.

A pickle names functions to call. This reader knows the few that rebuild NumPy arrays and scalars
and PyTorch tensors (without PyTorch), each replaced by one that checks what it is given; any other
name is refused before anything is called. Object arrays are refused too.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np


class PickleRefused(ValueError):
    """The file holds something else than data."""


def load(path: Path) -> Any:
    """The data in a pickle file.

    Raises:
        PickleRefused: it names a function or class that data does not need, or is damaged.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            raise PickleRefused(
                f"{path.name} is an archive of torch.save; SAFE's files are plain pickles: load it "
                "with torch.load(..., weights_only=True) and write it with pickle.dump."
            )
        file.seek(0)
        try:
            return _Reader(file).load()
        except PickleRefused as error:
            raise PickleRefused(f"{path.name}: {error}") from error
        except Exception as error:  # whatever a damaged or hostile file does to the reader
            kind = type(error).__name__
            raise PickleRefused(f"{path.name} is no readable pickle ({kind}: {error}).") from error


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        raise PickleRefused(
            f"holds {module}.{name}, which is not data: expected arrays, tensors, numbers, text "
            "and containers of them. Nothing was executed; do not load this file elsewhere."
        )

    def persistent_load(self, pid: Any) -> Any:
        raise PickleRefused(f"refers to something outside of the file ({pid!r:.80}).")


class _Array:
    """Stands for the class `numpy.ndarray`: a name to pass on, not to call."""


class _DType:
    """Stands for `numpy.dtype`: a type of numbers or text, and its byte order. What else a file
    says about a type (fields, flags) could make NumPy take its bytes for pointers.
    """

    def __init__(self, code: Any, *_: Any):
        self.value = np.dtype(code)
        if self.value.kind not in "biufcSU" and self.value != ml_dtypes.bfloat16:
            raise PickleRefused(f"holds an array of {self.value}, expected numbers or text.")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Rebuilt(np.ndarray):
    """An array whose type comes from a `_DType`, and its values from bytes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(data, bytes):
            raise PickleRefused("holds an array of objects, expected numbers or text.")
        super().__setstate__((1, shape, dtype.value, fortran, data))


def _reconstruct(kind: Any, *_: Any) -> np.ndarray:
    if kind is not _Array:
        raise PickleRefused(f"rebuilds an array as {kind!r:.80}.")
    return _Rebuilt((0,), "b")


def _frombuffer(buffer: bytes | bytearray, dtype: _DType, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype.value).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.value)[0]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise PickleRefused(f"encodes text as {encoding!r:.40}.")
    return text.encode("latin1")


def _empty() -> bytes:
    """How old protocols write b""."""
    return b""


def _tensor(
    storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """A view of a storage as PyTorch lays it out, copied."""
    values = np.asarray(storage)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.zeros(size, values.dtype)
    if offset < 0 or min((*size, *stride, 0)) < 0 or last >= len(values):
        raise PickleRefused(f"holds a tensor {size} that reaches beyond its {len(values)} values.")
    strides = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, strides).copy()


class _StorageReader(_Reader):
    """The pickle inside of a storage: storages by key, filled in afterwards."""

    def __init__(self, file: io.BytesIO, limit: int):
        super().__init__(file)
        self.limit = limit
        self.storages: dict[str, np.ndarray] = {}

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, numel, view = pid
        if kind != "storage" or view is not None or not 0 <= numel <= self.limit:
            raise PickleRefused(f"holds an unexpected storage ({pid!r:.80}).")
        return self.storages.setdefault(key, np.zeros(numel, dtype))


def _storage(data: bytes) -> np.ndarray:
    """PyTorch's older file format: three pickles about it, the object, its keys, their bytes."""
    file = io.BytesIO(data)
    for _ in range(3):
        _Reader(file).load()
    reader = _StorageReader(file, len(data))
    found = reader.load()
    for key in _Reader(file).load():
        values = reader.storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != len(values):
            raise PickleRefused(f"announces {len(values)} values in a storage of {numel}.")
        values[:] = np.frombuffer(file.read(values.nbytes), values.dtype)
    return found


KNOWN: dict[tuple[str, str], Callable[..., Any] | type | np.dtype] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _empty,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("ml_dtypes", "bfloat16"): ml_dtypes.bfloat16,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch.storage", "_load_from_bytes"): _storage,
}
for _core in ("numpy.core", "numpy._core"):
    KNOWN[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    KNOWN[f"{_core}.multiarray", "scalar"] = _scalar
    KNOWN[f"{_core}.numeric", "_frombuffer"] = _frombuffer
for _name, _code in {
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
    "BFloat16": ml_dtypes.bfloat16,
}.items():
    KNOWN["torch", f"{_name}Storage"] = np.dtype(_code)
