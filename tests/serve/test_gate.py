import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mistjax.policies import BOARD
from mistjax.serve.gate import Gate, GateMemory, Wall, read_gate

NUMBER = st.floats(-4, 4, width=32)
CHUNK = arrays(np.float32, (6, 3), elements=NUMBER)
VECTOR = arrays(np.float32, (3,), elements=NUMBER)
LIMITS = st.none() | st.tuples(*[st.floats(0, 2)] * 3)
WALLS = st.tuples(
    st.integers(0, 2), st.integers(0, 2), st.floats(-2, 0), st.floats(0, 2), st.floats(-2, 2)
)
GATES = st.fixed_dictionaries(
    {
        "low": st.none() | st.just((-1.0, -0.5, -1.0)),
        "high": st.none() | st.just((1.0, 0.5, 0.2)),
        "velocity": LIMITS,
        "acceleration": LIMITS,
        "box": st.lists(WALLS, max_size=3).map(tuple),
        "gripper": st.just(2),
        "gripper_steps": st.integers(0, 3),
    }
)
STILL = np.zeros(3, np.float32)


@given(GATES, CHUNK, VECTOR, VECTOR, VECTOR)
@settings(max_examples=100, deadline=None)
def test_it_can_only_shrink(gate, chunk, rest, state, last):
    """Every action lies between standing still and what was proposed, in every dimension."""
    gate = Gate(**{**gate, "box": tuple(Wall(*wall) for wall in gate["box"])})
    out = gate(chunk, rest, state, GateMemory(last.astype(float), 1))
    assert out.dtype == np.float32
    assert (out >= np.minimum(rest, chunk)).all() and (out <= np.maximum(rest, chunk)).all()


@given(CHUNK, VECTOR)
@settings(max_examples=50, deadline=None)
def test_without_limits_not_a_bit_changes(chunk, state):
    assert Gate()(chunk, STILL, state).tobytes() == chunk.tobytes()


@given(CHUNK, VECTOR)
@settings(max_examples=50, deadline=None)
def test_the_robot_stays_in_its_box(chunk, state):
    """Or goes no further outside of it than it was."""
    walls = tuple(Wall(i, i, -0.5, 0.5, gain=0.1) for i in range(3))
    out = Gate(box=walls)(chunk, STILL, state)
    places = state + 0.1 * np.cumsum(out.astype(float), axis=0)
    assert (places <= np.maximum(state, 0.5) + 1e-5).all()
    assert (places >= np.minimum(state, -0.5) - 1e-5).all()


def test_velocity_and_growth_are_limited_and_braking_is_not():
    chunk = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [-1, 0, 0]], np.float32)
    gate = Gate(velocity=(0.5, 1, 1), acceleration=(0.3, 1, 1))
    out = gate(chunk, STILL, STILL)
    np.testing.assert_allclose(out[:, 0], [0.3, 0.5, 0.5, 0, -0.3], atol=1e-6)


def test_the_gripper_changes_once_in_so_many_steps():
    """A change to the side of rest always goes through: the gate only shrinks."""
    chunk = np.zeros((8, 3), np.float32)
    chunk[:, 2] = [-1, 1, -1, 1, 1, 1, 1, 1]
    rest = np.array([0, 0, -1], np.float32)
    gate = Gate(gripper=2, gripper_steps=3)
    out = gate(chunk, rest, STILL, GateMemory(np.array([0, 0, -1.0]), 9))
    assert list(out[:, 2]) == [-1, 1, -1, -1, -1, -1, 1, 1]


def test_memory_goes_on_across_chunks():
    gate = Gate(acceleration=(0.25, 1, 1))
    chunk = np.ones((2, 3), np.float32)
    first = gate(chunk, STILL, STILL)
    memory = gate.after(first, 2, None, STILL)
    assert gate(chunk, STILL, STILL, memory)[0, 0] == pytest.approx(0.75)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "gate.json"
    wall = dataclasses.asdict(Wall(0, 0, -1, 1))
    path.write_text(json.dumps({"velocity": [1, 1, 1, 1], "box": [wall]}))
    assert read_gate(path) == Gate(velocity=(1, 1, 1, 1), box=(Wall(0, 0, -1, 1),))


@pytest.mark.parametrize("wrong", [
    {"speed": [1]},
    {"velocity": [-1]},
    {"velocity": ["fast"]},
    {"velocity": 1},
    {"box": [{"action": 0}]},
    {"box": [{"action": 0, "state": 0, "low": 1, "high": 0}]},
    {"gripper_steps": 2},
    {"gripper": 0, "gripper_steps": -1},
])  # fmt: skip
def test_what_is_no_gate_is_refused_by_its_file(tmp_path, wrong):
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=r"gate\.json is no gate"):
        read_gate(path)


@pytest.mark.parametrize("gate", [
    Gate(velocity=(1.0,)),
    Gate(box=(Wall(9, 0, 0, 1),)),
    Gate(box=(Wall(0, 9, 0, 1),)),
    Gate(gripper=4),
])  # fmt: skip
def test_the_gate_of_another_robot_is_refused(gate, toy):
    with pytest.raises(ValueError, match="gate"):
        gate.check(toy.spec, BOARD)
