"""LIBERO's fixed start states, read as data.

The files are what `torch.save` made of one float64 array: a zip archive around a pickle. To
unpickle is to run the file; here its instructions are only read, by a machine that knows the few
that an array needs, calls nothing, and refuses all others. So files of others (LIBERO-PRO's) are
safe to open, and PyTorch is not needed.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float

ARRAY = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
KNOWN = (*ARRAY, "numpy ndarray", "numpy dtype", "_codecs encode")
VALUES = ("BININT", "BININT1", "BININT2", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES", "LONG1")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_init_states(path: str | Path) -> Float[np.ndarray, "states size"]:
    """The start states of a task: rows of (time, qpos, qvel).

    Raises:
        ValueError: the file is not one plain float64 matrix as PyTorch saves it; says where it
            stops being one.
    """
    path = Path(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a zip archive: expected an init file made by torch.save.")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError(f"{path} holds {archive.namelist()}: expected one data.pkl.")
        stream = archive.read(names[0])
    try:
        return _matrix(_read(stream))
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is not a plain float64 matrix: {error}.") from error


class _Made(list):
    """What an instruction would have made, not made: [name, arguments, state]."""


def _read(stream: bytes) -> Any:
    """The value that a pickle describes, with `_Made` in place of every object."""
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}
    for opcode, argument, position in pickletools.genops(stream):
        name, value = opcode.name, cast(Any, argument)
        if name == "PROTO":
            continue
        if name == "STOP":
            (described,) = stack
            return described
        if name == "GLOBAL":
            if value not in KNOWN:
                raise ValueError(f"it asks for {value!r} at byte {position}")
            stack.append(value)
        elif name in VALUES:
            stack.append(value)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE" or name in SIZES:
            start = marks.pop() if name == "TUPLE" else len(stack) - SIZES[name]
            stack[start:] = [tuple(stack[start:])]
        elif name == "REDUCE":
            arguments, callee = stack.pop(), stack.pop()
            stack.append(_Made([callee, arguments, None]))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1][2] = state
        elif name in ("BINPUT", "LONG_BINPUT"):
            memory[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[value])
        else:
            raise ValueError(f"it holds the instruction {name} at byte {position}")
    raise ValueError("it ends early")


def _matrix(value: Any) -> Float[np.ndarray, "states size"]:
    if not isinstance(value, _Made) or value[0] not in ARRAY:
        raise ValueError("it holds something else than an array")
    _, shape, kind, column_major, data = value[2]
    if kind[:2] != ["numpy dtype", ("f8", False, True)] or kind[2][1] != "<":
        raise ValueError(f"it has the type {kind}")
    if isinstance(data, _Made):  # protocol 2 writes bytes as text
        name, (text, encoding), _ = data
        if name != "_codecs encode" or encoding != "latin1":
            raise ValueError(f"its bytes are written as {name!r}")
        data = text.encode("latin1")
    if len(shape) != 2:
        raise ValueError(f"it has the shape {shape}")
    order = "F" if column_major else "C"
    return np.frombuffer(data, "<f8").reshape(shape, order=order).astype(np.float64)
