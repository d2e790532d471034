"""Pickles of data, read by a machine that calls nothing.

Unpickling a file runs it: it names functions, calls them, and changes what they return. Here two
steps do without. `describe` follows only the instructions that data needs, and notes what would be
called as a `Call`, if its name is listed. `Builder` then makes numbers, text, containers and new
NumPy arrays from the description, each by a function that checks its arguments; no object that the
file could have changed survives it.

Both are bounded. The description has at most `CONTAINERS` containers; what is built may nest
`DEPTH` deep and take `EXPANSION` bytes for each byte of the file, so that neither one value named a
million times, nor a shape without its bytes, takes memory or time that the file does not pay for.
"""

from __future__ import annotations

import dataclasses
import io
import math
import mmap
import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import ml_dtypes
import numpy as np

INSTRUCTIONS = 2**24
CONTAINERS = 2**17
DEPTH = 32
EXPANSION, ROOM = 16, 2**22  # bytes that may be built: for each byte of the file, and besides
AXES = 32
LONGEST = 10**6  # characters of an array's strings

PLAIN = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
BFLOAT16 = "ml_dtypes bfloat16"


class PickleRefused(ValueError):
    """The file holds something other than data."""


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A function or class that the file names, `module name`; never looked up."""

    text: str


@dataclasses.dataclass(slots=True, eq=False)
class Call:
    """What would be called, with what, and the state that the result would be given."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


Maker = Callable[..., Any]
"""`maker(builder, *arguments)` of a `Call`, with `state=` where the call has one."""
Stream = io.BytesIO | mmap.mmap


def read(file: Stream, size: int, makers: Mapping[str, Maker], names: Collection[str] = ()) -> Any:
    """The data of a pickle that fills a whole file.

    Args:
        file: at the pickle's first byte.
        size: bytes of the file.
        makers: what may be called, by `module name`.
        names: what else may be named, as an argument.

    Raises:
        PickleRefused: it holds more than data, or is damaged.
    """
    try:
        described = describe(file, {*makers, *names})
        if left := size - file.tell():
            raise PickleRefused(f"holds {left} bytes after its end.")
        return Builder(EXPANSION * size + ROOM, makers).value(described)
    except PickleRefused:
        raise
    except Exception as error:  # whatever a damaged or hostile file does to its reader
        kind = type(error).__name__
        raise PickleRefused(f"is not a readable pickle ({kind}: {error!s:.200}).") from error


def describe(file: Stream, names: Collection[str], *, outside: bool = False) -> Any:
    """What the pickle at the file's position describes; leaves the file positioned after it.

    Args:
        file: read up to the pickle's end.
        names: what it may name.
        outside: whether it may refer to something outside of it, a `Call` of "outside".

    Raises:
        PickleRefused: an instruction or name that data does not need, or too many.
        ValueError: damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}
    containers = 0

    def take(count: int) -> list[Any]:
        if count > len(stack):
            raise PickleRefused("takes more values than it has made.")
        start = len(stack) - count
        taken = stack[start:]
        del stack[start:]
        return taken

    def since_mark() -> list[Any]:
        if not marks:
            raise PickleRefused("ends a group that it did not begin.")
        return take(max(len(stack) - marks.pop(), 0))

    for count, (opcode, found, _) in enumerate(pickletools.genops(cast("Any", file))):
        operation, argument = opcode.name, cast("Any", found)
        if count > INSTRUCTIONS or max(containers, len(stack), len(memory) // 4) > CONTAINERS:
            raise PickleRefused("holds more values than any rollout needs.")
        if operation in CONSTANTS:
            stack.append(CONSTANTS[operation])
        elif operation in PLAIN:
            stack.append(argument)
        elif operation in ("PROTO", "FRAME"):
            pass
        elif operation == "MARK":
            marks.append(len(stack))
            containers += 1
        elif operation in SIZES:
            stack.append(tuple(take(SIZES[operation])))
            containers += 1
        elif operation == "TUPLE":
            stack.append(tuple(since_mark()))
        elif operation in ("EMPTY_LIST", "LIST"):
            stack.append(since_mark() if operation == "LIST" else [])
            containers += 1
        elif operation in ("EMPTY_DICT", "DICT"):
            stack.append(_pairs({}, since_mark() if operation == "DICT" else []))
            containers += 1
        elif operation in ("APPEND", "APPENDS"):
            items = since_mark() if operation == "APPENDS" else take(1)
            _top(stack, list).extend(items)
        elif operation in ("SETITEM", "SETITEMS"):
            items = since_mark() if operation == "SETITEMS" else take(2)
            _pairs(_top(stack, dict), items)
        elif operation in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memory) if operation == "MEMOIZE" else argument
            if not 0 <= place <= INSTRUCTIONS:
                raise PickleRefused("numbers its values beyond their count.")
            memory[place] = _top(stack)
        elif operation in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in memory:
                raise PickleRefused("repeats a value that it did not make.")
            stack.append(memory[argument])
        elif operation in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ", 1) if operation == "GLOBAL" else take(2)
            stack.append(_named(parts, names))
        elif operation == "REDUCE":
            callee, arguments = take(2)
            if type(callee) is not Name or type(arguments) is not tuple:
                raise PickleRefused("calls something that it does not name.")
            stack.append(_call(callee.text, arguments))
            containers += 1
        elif operation == "BUILD":
            (state,) = take(1)
            target = _top(stack, Call)
            if target.state is not None:
                raise PickleRefused(f"gives one {target.name} two states.")
            target.state = state
        elif operation == "BINPERSID" and outside:
            stack.append(Call("outside", (*take(1),)))
        elif operation == "STOP":
            if len(stack) != 1 or marks:
                raise PickleRefused("ends in the middle of a value.")
            return stack[0]
        else:
            raise PickleRefused(
                f"holds the instruction {operation}, which data does not need. Nothing was "
                "executed; do not load this file elsewhere."
            )
    raise PickleRefused("ends early.")


def _top(stack: list[Any], kind: type | None = None) -> Any:
    if not stack or (kind is not None and type(stack[-1]) is not kind):
        raise PickleRefused("changes a value of a kind other than it says.")
    return stack[-1]


def _pairs(into: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    """Keys are text: others could be chosen such that a dictionary takes hours."""
    if len(items) % 2 or any(type(key) is not str for key in items[::2]):
        raise PickleRefused("holds a dictionary whose keys are not text.")
    into.update(zip(items[::2], items[1::2], strict=True))
    return into


def _named(parts: list[Any], names: Collection[str]) -> Name:
    text = " ".join(part if type(part) is str else "?" for part in parts)
    if text in names or text == "collections OrderedDict":
        return Name(text)
    shown = ascii(text.replace(" ", "."))[1:-1]
    raise PickleRefused(
        f"holds {shown:.120}, which is not data: expected arrays, tensors, numbers, text and "
        "containers of them. Nothing was executed; do not load this file elsewhere."
    )


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    if name != "collections OrderedDict":
        return Call(name, arguments)
    if arguments:
        raise PickleRefused("makes a dictionary of arguments.")
    return {}


class Builder:
    """Makes data from a description, within a number of bytes.

    Args:
        room: bytes that it may take.
        makers: see `read`.
    """

    def __init__(self, room: int, makers: Mapping[str, Maker]):
        self.room = room
        self.makers = makers

    def charge(self, size: int) -> None:
        """Takes bytes off the room that is left; PickleRefused if there is not enough."""
        self.room -= size
        if self.room < 0:
            raise PickleRefused("describes more data than its bytes can hold.")

    def value(self, described: Any, depth: int = 0) -> Any:
        """Numbers, text, bytes, arrays, and lists, tuples and dictionaries of them."""
        if depth > DEPTH:
            raise PickleRefused(f"nests values more than {DEPTH} deep.")
        self.charge(32)
        kind = type(described)
        if described is None or kind in (bool, float):
            return described
        if kind is int:
            if described.bit_length() > 64:
                raise PickleRefused("holds a number of more than 64 bits.")
            return described
        if kind is str:
            return self.text(described)
        if kind in (bytes, bytearray):
            return self.bytes(described)
        if kind in (list, tuple):
            return kind(self.value(item, depth + 1) for item in described)
        if kind is dict:
            return {self.text(k): self.value(v, depth + 1) for k, v in described.items()}
        if kind is not Call or described.name not in self.makers:
            raise PickleRefused("holds a name where data is expected.")
        state = {} if described.state is None else {"state": described.state}
        return self.makers[described.name](self, *described.arguments, **state)

    def text(self, described: Any) -> str:
        if type(described) is not str:
            raise PickleRefused("holds no text where it is expected.")
        self.charge(len(described))
        try:
            described.encode()
        except UnicodeEncodeError:
            raise PickleRefused("holds text that is not Unicode.") from None
        return described

    def bytes(self, described: Any) -> bytes:
        """Bytes as any protocol writes them: 0 to 2 have text, to be encoded as Latin-1."""
        if type(described) is Call and described.name in ("__builtin__ bytes", "builtins bytes"):
            described = described.arguments or b""
        if type(described) is Call and described.name == "_codecs encode":
            text, encoding = described.arguments
            if type(text) is not str or encoding != "latin1":
                raise PickleRefused("encodes text differently than bytes are written.")
            described = text.encode("latin1")
        if not isinstance(described, bytes | bytearray):
            raise PickleRefused("holds objects where bytes of numbers or text are expected.")
        self.charge(len(described))
        return bytes(described)

    def whole(self, described: Any) -> tuple[int, ...]:
        """Sizes, strides or positions, none below zero."""
        if type(described) not in (tuple, list) or len(described) > AXES:
            raise PickleRefused("holds no shape where it is expected.")
        if not all(type(n) is int and 0 <= n < 2**62 for n in described):
            raise PickleRefused("holds a shape, place or stride that reaches beyond its values.")
        return tuple(described)

    def dtype(self, described: Any) -> np.dtype:
        """A type of numbers or text. What else a file says about a type (fields, flags, sizes)
        could make NumPy take its bytes for pointers, so it is compared, never used."""
        if type(described) is not Call or described.name != "numpy dtype":
            raise PickleRefused("holds an array without its type.")
        code, state = described.arguments[0], described.state or (3, "<")
        if type(code) is Name and code.text == BFLOAT16:
            return np.dtype(ml_dtypes.bfloat16)
        if (
            not isinstance(code, str)
            or not (code in NUMBERS or _is_text(code))
            or (type(state) is not tuple or state[1] not in ("<", ">", "|", "="))
        ):
            raise PickleRefused(f"holds an array of {code!s:.40}, expected numbers or text.")
        return np.dtype((">" if state[1] == ">" else "<") + code)

    def array(self, data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
        """A read-only array of exactly these bytes."""
        self.charge(256 + dtype.itemsize * math.prod(max(n, 1) for n in shape))
        if math.prod(shape) * dtype.itemsize != len(data):
            raise PickleRefused(f"holds {len(data)} bytes for an array {shape} of {dtype}.")
        if not data:
            return np.zeros(shape, dtype)
        if dtype.kind == "b":  # a byte other than 0 and 1 is not a truth value, and NumPy trusts it
            values = np.frombuffer(data, np.uint8) != 0
        else:
            values = np.frombuffer(data, dtype)
        if dtype.kind == "U":
            codes = np.frombuffer(data, f"{dtype.byteorder}u4")
            if np.any((codes > 0x10FFFF) | (codes >> 11 == 0x1B)):
                raise PickleRefused("holds an array of text that is not Unicode.")
        return values.reshape(shape, order=order)


def _is_text(code: str) -> bool:
    length = code[1:]
    return code[:1] in ("S", "U") and length.isdecimal() and 0 < int(length[:9]) <= LONGEST


def _reconstruct(build: Builder, kind: Any, *_: Any, state: Any) -> np.ndarray:
    """An array as protocols 0 to 4 write it."""
    if kind != Name("numpy ndarray"):
        raise PickleRefused("rebuilds an array as something else.")
    _, shape, dtype, column_major, data = state
    order = "F" if column_major is True else "C"
    return build.array(build.bytes(data), build.dtype(dtype), build.whole(shape), order)


def _frombuffer(build: Builder, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array as protocol 5 writes it."""
    order = "F" if order == "F" else "C"
    return build.array(build.bytes(data), build.dtype(dtype), build.whole(shape), order)


def _scalar(build: Builder, dtype: Any, data: Any) -> Any:
    return build.array(build.bytes(data), build.dtype(dtype), (), "C")[()]


def _bytes(name: str) -> Maker:
    return lambda build, *arguments: build.bytes(Call(name, arguments))


MAKERS: dict[str, Maker] = {
    **{name: _bytes(name) for name in ("_codecs encode", "__builtin__ bytes", "builtins bytes")},
    **{
        f"{core}.{function}": maker
        for core in ("numpy.core", "numpy._core")
        for function, maker in (
            ("multiarray _reconstruct", _reconstruct),
            ("multiarray scalar", _scalar),
            ("numeric _frombuffer", _frombuffer),
        )
    },
}
"""NumPy's arrays and scalars, and the bytes of old protocols."""
NAMES = ("numpy ndarray", "numpy dtype", BFLOAT16)
