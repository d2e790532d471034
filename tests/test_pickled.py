"""A pickle is read as data, within its own size, and changes nothing."""

import base64
import io
import json
import pickle
import struct
import subprocess
import sys
import types

import ml_dtypes
import numpy as np
import pytest

from mistjax import pickled
from mistjax.pickled import PickleRefused


def read(data):
    return pickled.read(io.BytesIO(data), len(data), pickled.MAKERS, pickled.NAMES)


class Made:
    """Pickles as a call, with a state that its result is given."""

    def __init__(self, function, arguments, *state):
        self.parts = (function, arguments, *state)

    def __reduce__(self):
        return self.parts


def array(shape, dtype, data):
    reconstruct = np._core.multiarray._reconstruct
    return Made(reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


def typed(code, *state):
    return Made(np.dtype, (code, False, True), (3, "<", None, None, None, *state))


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("code", [ml_dtypes.bfloat16, "f4"])
def test_a_state_for_a_live_type_changes_it_nowhere(code):
    """NumPy would give this state to the one type that all arrays of the process share."""
    value = array((4,), typed(code, 4096, 64, 64), np.zeros(4, np.dtype(code)).tobytes())
    assert read(pickle.dumps(value)).nbytes == 4 * np.dtype(code).itemsize
    assert (BFLOAT16.itemsize, BFLOAT16.alignment, np.dtype("f4").itemsize) == (2, 2, 4)
    with pytest.raises(PickleRefused):  # the type alone, without an array
        read(pickle.dumps(typed(code, 4096, 64, 64)))


@pytest.mark.parametrize(
    "value",
    [
        array((2,), np.dtype("f4"), b"\0" * 7),
        array((2,), np.dtype("f4"), b"\0" * 9),
        array((-1, -2), np.dtype("f4"), b"\0" * 8),
        array((2.0,), np.dtype("f4"), b"\0" * 8),
        array((True,), np.dtype("u1"), b"\0"),
        array((0, 2**40), np.dtype("f4"), b""),
        array((2**62, 2**62), np.dtype("u1"), b""),
        array((1,) * 65, np.dtype("u1"), b"\0"),
        array((1,), np.dtype("O"), b"\0" * 8),
        array((1,), np.dtype("V8"), b"\0" * 8),
        array((1,), np.dtype([("a", "O")]), b"\0" * 8),
        array((1,), np.dtype("M8[s]"), b"\0" * 8),
        array((1,), np.dtype("U1"), b"\xff\xff\xff\xff"),
        array((1,), np.dtype("U1"), struct.pack("<I", 0xD800)),
        array((10**9,), Made(np.dtype, ("S0", False, True)), b""),
        array((1,), Made(np.dtype, ("f4,O", False, True)), b"\0" * 12),
        array((1,), Made(np.dtype, (["f4"], False, True)), b"\0" * 4),
        array((1,), "f4", b"\0" * 4),
        Made(np._core.multiarray.scalar, (np.dtype("O"), b"\0" * 8)),
        Made(np._core.multiarray.scalar, (np.dtype("f8"), b"\0" * 4)),
        Made(np._core.numeric._frombuffer, (b"\0" * 4, np.dtype("f8"), (1,), "C")),
        Made(np._core.numeric._frombuffer, (np.zeros(4, "u1"), np.dtype("u1"), (4,), "C")),
        Made(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b")),
        Made(np.ndarray, ((2,),)),
        Made(types.SimpleNamespace, ()),
        np.ndarray,
        np.dtype("f4"),
        {1: 2},
        {("a",): 2},
        {1, 2},
        2**65,
        "\ud800",
        1j,
    ],
    ids=lambda value: str(value).partition(" object at ")[0],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_what_is_no_data_or_does_not_fit_is_refused(value, protocol):
    with pytest.raises(PickleRefused):
        read(pickle.dumps(value, protocol))


def test_a_byte_that_is_no_truth_value_becomes_one():
    """NumPy trusts such bytes, and selects beyond the end of an array with them."""
    found = read(pickle.dumps(array((3,), np.dtype("?"), b"\x00\x02\xff")))
    assert found.view(np.uint8).tolist() == [0, 1, 1]


@pytest.mark.parametrize("reused", [np.arange(3), "text", [1.5], {"a": None}, (True, b"\0")])
@pytest.mark.parametrize("protocol", range(6))
def test_a_value_that_is_named_twice_is_there_twice(reused, protocol):
    first, second = read(pickle.dumps([reused, reused], protocol))
    np.testing.assert_equal(first, reused)
    np.testing.assert_equal(second, reused)


LAUGHS = b"]q\0(NNNNNNNNNNe" + b"".join(
    b"]q%c(%se" % (level, b"h%c" % (level - 1) * 10) for level in range(1, 60)
)
BOMBS = {
    "a length beyond the file": b"\x80\x05\x8e" + struct.pack("<Q", 1 << 40) + b"aa.",
    "bytes beyond the file": b"\x80\x05\x96" + struct.pack("<Q", 1 << 30) + b"aa.",
    "text beyond the file": b"\x80\x05X" + struct.pack("<I", 1 << 30) + b"aa.",
    "a number beyond the file": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"aa.",
    "digits": b"L" + b"9" * 100_000 + b"L\n.",
    "nested lists": b"]" * 50_000 + b"a" * 49_999 + b".",
    "nested tuples": b")" + b"\x85" * 50_000 + b".",
    "nested calls": b"cnumpy\ndtype\n)R" + b"\x85R" * 10_000 + b".",
    "lists in a list": b"](" + b"]" * 200_000 + b"e.",
    "groups": b"(" * 200_000 + b".",
    "values without end": b"N" * 200_000,
    "names for one value": b"N" + b"\x94" * 600_000 + b".",
    "a value named over and over": b"(" + LAUGHS + b"l.",
    "a list in itself": b"]\x94h\0a.",
    "a dictionary in itself": b"}\x94X\1\0\0\0ah\0s.",
    "far numbers": b"Np" + str(2**61 - 1).encode() + b"\n.",
    "an array shared": pickle.dumps([np.zeros(1 << 16, np.uint8)] * 1000),
    "bytes shared": pickle.dumps([b"x" * 50_000] * 1000),
}


PROGRAM = """
import base64, io, json, resource, sys, time
from mistjax import pickled
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, [pages * resource.getpagesize() + (256 << 20)] * 2)
for name, text in json.load(sys.stdin).items():
    data, start = base64.b64decode(text), time.process_time()
    try:
        pickled.read(io.BytesIO(data), len(data), pickled.MAKERS, pickled.NAMES)
    except pickled.PickleRefused as error:
        assert "MemoryError" not in str(error), name
    else:
        raise AssertionError(name)
    assert time.process_time() - start < 10, name
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits on memory")
def test_a_small_file_takes_little_memory_and_time():
    files = {name: base64.b64encode(data).decode() for name, data in BOMBS.items()}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, input=json.dumps(files), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BROKEN = """
,.,N,N.N.,NN.,(N.,0.,t.,e.,a.,]N(e.,R.,b.,NNR.,]Nb.,h\\x00.,\\x94.,cos\\nsystem\\n.,V\\n\\x93.,NN\\x93.,Q.,
]\\x81.,\\x97.,Pfile\\n.,cnumpy\\n\\n.,\\xff,cnumpy\\ndtype\\n(V<f4\\ntR(tb(tb.,K,(K\\x01u.,}K\\x01Ns.
"""


@pytest.mark.parametrize("text", BROKEN.strip().split(","))
def test_no_sequence_of_instructions_ends_in_anything_but_a_refusal(text):
    with pytest.raises(PickleRefused):
        read(text.strip().encode().decode("unicode_escape").encode("latin1"))
