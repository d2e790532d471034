"""SAFE's pickle files: data, and nothing else.

They hold NumPy arrays and scalars, bfloat16 among them, and PyTorch tensors, which are read without
PyTorch. `mistjax.pickled` says why reading them is safe.
"""

from __future__ import annotations

import io
import mmap
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mistjax import pickled
from mistjax.pickled import Builder, Call, Name, PickleRefused
from mistjax.untrusted import open_file, refuse_stand_in

STORAGES = {
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
}


def load(path: Path) -> Any:
    """The data in a pickle file. Arrays are read-only.

    Raises:
        FileNotFoundError: there is no such file.
        PickleRefused: it names a function or class that data does not need, describes more than its
            bytes hold, or is damaged.
        ValueError: a link, or not a regular file.
    """
    with open_file(path) as file:
        start = file.read(256)
        if not start:
            raise PickleRefused(f"{path.name} is empty.")
        refuse_stand_in(path, start)
        if start.startswith(b"PK\x03\x04"):
            raise PickleRefused(
                f"{path.name} is an archive of torch.save; SAFE's files are plain pickles: load it "
                "with torch.load(..., weights_only=True) and write it with pickle.dump."
            )
        # as a map, a length that the file announces is cut to what it has before it is read
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return pickled.read(content, len(content), MAKERS, pickled.NAMES)
            except PickleRefused as error:
                raise PickleRefused(f"{path.name} {error}") from error


def _storage(build: Builder, data: bytes) -> np.ndarray:
    """PyTorch's older file format: three pickles about it, the object, its keys, their bytes."""
    file = io.BytesIO(build.bytes(data))
    for _ in range(3):
        pickled.describe(file, ())
    names = {f"torch {kind}Storage": dtype for kind, dtype in STORAGES.items()}
    found = pickled.describe(file, names, outside=True)
    keys = pickled.describe(file, ())
    if type(found) is not Call or found.name != "outside" or type(found.arguments[0]) is not tuple:
        raise PickleRefused("holds something other than a storage where its values are expected.")
    what, kind, key, _, numel, view = found.arguments[0]
    if what != "storage" or type(kind) is not Name or view is not None or keys != [key]:
        raise PickleRefused("holds an unexpected storage.")
    dtype, size = np.dtype(names[kind.text]), file.read(8)
    (announced,) = build.whole((numel,))
    if size != struct.pack("<Q", announced):
        raise PickleRefused(f"announces {announced} values in a storage of another size.")
    return build.array(file.read(), dtype, (announced,), "C")


def _tensor(
    build: Builder, storage: Any, offset: Any, size: Any, stride: Any, *_: Any
) -> np.ndarray:
    """A view of a storage as PyTorch lays it out, copied."""
    if type(storage) is not Call or storage.name != "torch.storage _load_from_bytes":
        raise PickleRefused("holds a tensor without its storage.")
    values = _storage(build, *storage.arguments)
    ((first,), size, stride) = (build.whole((offset,)), build.whole(size), build.whole(stride))
    last = first + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    build.charge(256 + values.itemsize * int(np.prod([max(n, 1) for n in size], dtype=object)))
    if 0 in size:
        return np.zeros(size, values.dtype)
    if last >= len(values):
        raise PickleRefused(f"holds a tensor {size} that reaches beyond its {len(values)} values.")
    strides = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[first:], size, strides).copy()


def _parameter(build: Builder, data: Any, *_: Any) -> np.ndarray:
    if type(data) is not Call or data.name != "torch._utils _rebuild_tensor_v2":
        raise PickleRefused("holds a parameter of something other than a tensor.")
    return _tensor(build, *data.arguments)


MAKERS = pickled.MAKERS | {
    "torch.storage _load_from_bytes": _storage,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
