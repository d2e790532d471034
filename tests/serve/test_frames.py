import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mistjax.serve.frames import FrameError, pack, unpack

NUMBERS = st.sampled_from(["u1", "i4", "i8", "f2", "f4", "f8", "?"])


def array_map(data=b"\0" * 4, dtype="<f4", shape=(1,)):
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


@given(NUMBERS.flatmap(lambda d: arrays(np.dtype(d), array_shapes(min_dims=0, min_side=0))))
@settings(max_examples=60, deadline=None)
def test_an_array_comes_back_as_it_was(array):
    found = unpack(pack({"a": array, "b": [1, "two", None, True]}))
    np.testing.assert_array_equal(found["a"], array)
    assert found["a"].dtype == array.dtype and found["b"] == [1, "two", None, True]


def test_a_scalar_comes_back_as_it_was():
    found = unpack(pack({"x": np.float32(1.5), "n": np.int64(7), "t": np.str_("go")}))
    assert found == {"x": 1.5, "n": 7, "t": "go"} and found["x"].dtype == np.float32


@pytest.mark.parametrize("frame", [
    "text",
    b"",
    b"\xc1",
    array_map(dtype="O"),
    array_map(dtype="|O8"),
    array_map(dtype="V4"),
    array_map(dtype="c8", data=b"\0" * 8),
    array_map(dtype="(1000000,1000000)f4"),
    array_map(dtype="f4,f4"),
    array_map(dtype=b"<f4"),
    array_map(dtype=None),
    array_map(shape=(2,)),
    array_map(shape=(-1,)),
    array_map(shape=(2**40, 0), data=b""),
    array_map(shape="one"),
    array_map(shape=(True,)),
    array_map(shape=(1,) * 9),
    array_map(data="text"),
    array_map(dtype="|b1", data=b"\2"),
    msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
    msgpack.packb(msgpack.ExtType(5, b"x")),
    msgpack.packb(list(range(5000))),
    b"\xdd\xff\xff\xff\xff",
    b"\x91" * 100_000 + b"\xc0",
    b"\xdc\x03\xe8" + b"\x90" * 1000,
], ids=range(25))  # fmt: skip
def test_what_is_no_frame_is_refused_in_one_sentence(frame):
    with pytest.raises(FrameError, match=r"^[^\n]{10,250}$"):
        unpack(frame)


@pytest.mark.parametrize("dtype", ["O", "c8", "V4"])
def test_what_the_protocol_does_not_have_is_not_packed(dtype):
    with pytest.raises(ValueError, match="no place in a frame"):
        pack(np.zeros(2, dtype))


def read_or_refused(frame):
    try:
        unpack(frame)
    except FrameError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_read_or_refused(frame):
    read_or_refused(frame)


ODD = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
)
DESCRIBED = st.dictionaries(
    st.sampled_from([b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape", "shape"]),
    st.sampled_from(["<f4", "|b1", "<U3", "O", "V8", (2, 3), (0,), (-1,), b"\0" * 24, b"\2"]) | ODD,
)
FRAMES = st.recursive(ODD | DESCRIBED, lambda inner: st.lists(inner) | st.dictionaries(ODD, inner))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(
    FRAMES.map(lambda value: msgpack.packb(value, unicode_errors="surrogatepass")), st.integers(0)
)
@settings(
    max_examples=20_000,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_20_000_frames_of_odd_values_are_read_or_refused(frame, cut):
    """Whole, and cut off somewhere."""
    read_or_refused(frame)
    read_or_refused(frame[: cut % (len(frame) + 1)])
