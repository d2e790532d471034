"""Injected faults start when they say and do what they say."""

import numpy as np
import pytest

from mistjax.envs.board.expert import recovery_action
from mistjax.envs.board.faults import FAULTS, Fault, FaultyBoard

RNG = np.random.default_rng(0)
ASKED = np.array([[0.1, 0.2, 0.3, 1.0]] * 4 + [[0.1, 0.2, 0.3, -1.0]])


def play(env, fault, seed=6):
    """Infos of an expert's episode under a fault."""
    faulty = FaultyBoard(env, fault)
    _, info = faulty.reset(seed=seed)
    infos, done = [info], False
    while not done:
        _, _, terminated, truncated, info = faulty.step(recovery_action(faulty))
        infos.append(info)
        done = terminated or truncated
    return infos


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


def test_an_early_release_drops_the_stone_at_its_labelled_onset(blind):
    infos = play(blind, Fault("early_release", trigger="held", delay=8))
    onset = infos[-1]["fault_onset"]
    assert infos[-1]["failure_cause"] == "dropped"
    assert infos[onset]["held"] is not None
    assert infos[onset + 1]["held"] is None
    assert [i["fault_active"] for i in infos[1:]] == [t >= onset for t in range(len(infos) - 1)]
    assert infos[onset]["fault_onset"] is None


def test_a_short_fault_ends_and_the_expert_recovers(blind):
    infos = play(blind, Fault("offset", trigger="close", delay=3, duration=4))
    assert sum(i["fault_active"] for i in infos) == 4
    assert infos[-1]["success"]


def test_a_robot_that_stands_still_fails(blind):
    assert play(blind, Fault("noop"))[-1]["failure_cause"] == "never_grasped"


@pytest.mark.parametrize(
    "wrong",
    [{"name": "gremlin"}, {"name": "noop", "trigger": "later"}, {"name": "noop", "strength": 2.0}],
)
def test_an_unknown_fault_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Fault(**wrong)
