"""Frames of openpi's websocket protocol: MessagePack, with arrays as maps of bytes.

An array is `{b"__ndarray__": True, b"data", b"dtype", b"shape"}`, a NumPy scalar
`{b"__npgeneric__": True, b"data", b"dtype"}`. Anyone who reaches the port can send a frame, so
sizes are checked before anything is built: a frame takes a small multiple of its own length in
memory. Arrays hold numbers, booleans or text only, never objects; nothing in a frame is executed.

Source: openpi-client 0.1.2, `msgpack_numpy`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

LARGEST = 64 << 20  # bytes of a frame
_CONTAINERS, _LISTED, _KEYS, _TEXT = 512, 4096, 256, 1 << 16
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,4})")
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"


class FrameError(ValueError):
    """A frame that cannot be read; its message is one sentence."""


def pack(value: Any) -> bytes:
    """Packs a value as a frame.

    Raises:
        ValueError: an array whose dtype the protocol does not have: objects, records, complex.
    """
    return _msgpack().packb(value, default=_plain)


def unpack(frame: bytes | str) -> Any:
    """The value in a frame; arrays are read-only views of the frame's bytes.

    Raises:
        FrameError: a text frame, invalid MessagePack, an invalid array, or more than the limits.
    """
    if isinstance(frame, str):
        raise FrameError("a text frame came in: expected a binary one, packed with msgpack-numpy.")
    if len(frame) > LARGEST:
        raise FrameError(f"a frame has {len(frame)} bytes: at most {LARGEST} are read.")
    left = _CONTAINERS

    def count(value: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise FrameError(f"a frame holds more than {_CONTAINERS} lists and maps.")
        return _array(value) if isinstance(value, dict) else value

    try:
        return _msgpack().unpackb(
            frame,
            object_hook=count,
            list_hook=count,
            max_array_len=_LISTED,
            max_map_len=_KEYS,
            max_str_len=_TEXT,
            max_bin_len=LARGEST,
            max_ext_len=0,
        )
    except FrameError:
        raise
    except Exception as error:
        raise FrameError(
            f"a frame is no msgpack-numpy ({type(error).__name__}: {error!s:.120})."
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "VOc":
        raise ValueError(f"an array of {value.dtype} has no place in a frame.")
    if isinstance(value, np.ndarray):
        return {
            _ARRAY: True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    if isinstance(value, np.generic):
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise ValueError(f"a {type(value).__name__} has no place in a frame.")


def _array(found: Mapping[Any, Any]) -> Any:
    if _ARRAY in found:
        dtype, shape, data = _dtype(found), found.get(b"shape"), found.get(b"data")
        if not isinstance(shape, list | tuple) or len(shape) > 8:
            raise FrameError(f"an array has the shape {shape!r:.60}.")
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
            raise FrameError(f"an array has the shape {shape!r:.60}.")
        size = math.prod(max(n, 1) for n in shape) if 0 in shape else math.prod(shape)
        if not isinstance(data, bytes) or size * max(dtype.itemsize, 1) > LARGEST:
            raise FrameError(f"an array of {dtype} {shape!r:.60} has no bytes, or too many.")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise FrameError(f"an array of {dtype} {shape!r:.60} comes with {len(data)} bytes.")
        array = np.frombuffer(data, dtype) if len(data) else np.zeros(0, dtype)
        if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
            raise FrameError("an array of truth values holds other bytes than 0 and 1.")
        return array.reshape(shape)
    if _SCALAR in found:
        dtype, value = _dtype(found), found.get(b"data")
        if not isinstance(value, bool | int | float | str | bytes):
            raise FrameError(f"a scalar of {dtype} holds a {type(value).__name__}.")
        with np.errstate(over="ignore", invalid="ignore"):  # too large a number becomes Inf
            return np.array(value).astype(dtype)[()]
    return dict(found)


def _dtype(found: Mapping[Any, Any]) -> np.dtype:
    name = found.get(b"dtype")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise FrameError(f"an array has the dtype {name!r:.60}: expected numbers or text.")
    return np.dtype(name)


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError:
        raise ImportError(
            "msgpack is not installed, which frames are packed with: pip install 'mistjax[serve]'."
        ) from None
    return msgpack
