"""Injected faults start when they say and do what they say."""

import numpy as np
import pytest

from mistjax.envs.board.faults import FAULTS, Fault

RNG = np.random.default_rng(0)
ASKED = np.array([[0.1, 0.2, 0.3, 1.0]] * 4 + [[0.1, 0.2, 0.3, -1.0]])


@pytest.mark.parametrize("name", FAULTS)
def test_strength_zero_leaves_the_action_alone(name):
    assert np.array_equal(FAULTS[name](ASKED, 0.0, RNG), ASKED[-1])


def test_each_fault_does_what_it_is_called():
    assert np.allclose(FAULTS["offset"](ASKED, 1.0, RNG), [0.6, 0.7, 0.3, -1.0])
    assert np.allclose(FAULTS["noop"](ASKED, 1.0, RNG), [0.0, 0.0, 0.0, -1.0])
    assert np.allclose(FAULTS["late_grasp"](ASKED, 0.3, RNG), [0.1, 0.2, 0.3, 1.0])
    assert np.allclose(FAULTS["early_release"](ASKED, 1.0, RNG), [0.1, 0.2, 0.3, 1.0])
    noisy = FAULTS["noise"](ASKED, 1.0, RNG)
    assert noisy[3] == -1.0
    assert not np.allclose(noisy[:3], ASKED[-1, :3])


@pytest.mark.parametrize(
    "wrong",
    [{"name": "gremlin"}, {"name": "noop", "trigger": "later"}, {"name": "noop", "strength": 2.0}],
)
def test_an_unknown_fault_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Fault(**wrong)
