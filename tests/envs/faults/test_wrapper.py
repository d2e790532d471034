"""An environment goes wrong in one place, from the onset on."""

import dataclasses

import numpy as np
import pytest

from mistjax.envs.board.sensor_faults import BOARD
from mistjax.envs.faults.battery import FAULTS, Mixture
from mistjax.envs.faults.wrapper import Faulty
from tests.envs.conftest import BlindBoard

STATE, PROMPT = BOARD.state, BOARD.prompt
STILL = np.array([0.1, 0.0, 0.0, 1.0])


class Coloured(BlindBoard):
    """Pictures that differ at every step, without a ray-caster."""

    def __init__(self, picture_every=1):
        super().__init__(image_size=16, picture_every=picture_every)

    def pictures(self):
        rng = np.random.default_rng(self.progress.steps)
        return rng.integers(0, 256, super().pictures().shape, np.uint8)


def play(name, strength=1.0, steps=12, seed=2, onset=(6, 6), noise=False, env=None):
    """(what is seen at each step, what the environment itself shows, last info)."""
    mixture = Mixture.single(name, strength, onset=onset, sensor_noise=noise)
    faulty = Faulty(env or Coloured(), BOARD, mixture)
    seen, info = faulty.reset(seed=seed)
    seen, shown = [seen], [faulty.unwrapped._observe()]
    for _ in range(steps):
        observation, _, _, _, info = faulty.step(STILL)
        seen.append(observation)
        shown.append(faulty.unwrapped._observe())
    return seen, shown, info


def differing(seen, shown):
    """key -> steps at which it is not what the environment shows."""
    return {
        key: [
            t for t, (a, b) in enumerate(zip(seen, shown, strict=True)) if not same(a[key], b[key])
        ]
        for key in seen[0]
    }


def same(a, b):
    return a == b if isinstance(a, str) else np.array_equal(a, b)


@pytest.mark.parametrize(
    "name", [n for n, (where, _) in FAULTS.items() if where not in ("scene", "action", "push")]
)
def test_a_fault_is_in_exactly_one_input_from_its_onset_on(name):
    seen, shown, info = play(name)
    where = {**BOARD.cameras, "state": STATE, "instruction": PROMPT}[FAULTS[name][0]]
    steps = differing(seen, shown)
    assert steps[where]
    assert min(steps.pop(where)) >= 6
    assert not any(steps.values())
    assert info["fault"] == name
    assert (info["fault_input"], info["fault_strength"], info["fault_onset"]) == (
        FAULTS[name][0],
        1.0,
        6,
    )
    assert seen[-1][BOARD.cameras["front"]].dtype == np.uint8
    assert seen[-1][STATE].dtype == np.float32


@pytest.mark.parametrize("name", ["front_frozen", "wrist_delayed", "front_patch", "state_drifting"])
def test_pictures_between_looks_change_nothing_at_the_looks(name):
    every, looks = (
        play(name, noise=True, env=Coloured(picture_every=n), steps=20, onset=(6, 9))[0][::4]
        for n in (1, 4)
    )
    for a, b in zip(every, looks, strict=True):
        assert all(same(a[key], b[key]) for key in a)


def test_sensor_noise_is_small_and_of_the_seed():
    mixture = Mixture()
    runs = []
    for _ in range(2):
        faulty = Faulty(Coloured(), BOARD, mixture)
        runs.append(faulty.reset(seed=4)[0])
        clean = faulty.unwrapped._observe()
    assert all(same(runs[0][key], runs[1][key]) for key in clean)
    error = runs[0][BOARD.cameras["wrist"]].astype(float) - clean[BOARD.cameras["wrist"]]
    assert error.std() == pytest.approx(4, rel=0.1)
    assert 0 < np.abs(runs[0][STATE] - clean[STATE]).max() < 5e-3
    assert runs[0][STATE][4] == clean[STATE][4]
    faulty.step(STILL)
    assert faulty._info({})["fault"] is None


def test_a_push_moves_the_gripper_by_3_cm_within_four_steps():
    _, pushed, _ = play("push", seed=2)
    _, plain, _ = play("push", strength=0.0, seed=2)
    away = [np.linalg.norm(a[STATE][:3] - b[STATE][:3]) for a, b in zip(pushed, plain, strict=True)]
    assert max(away[:7]) == 0
    assert away[-1] == pytest.approx(0.03, abs=4e-3)


@pytest.mark.parametrize("name", [n for n, (where, _) in FAULTS.items() if where == "action"])
def test_actuators_fail_from_the_onset_on(name):
    seen, shown, _ = play(name)
    assert not any(differing(seen, shown).values())
    if name == "action_noop":
        assert np.abs(shown[-1][STATE][:3] - shown[7][STATE][:3]).max() < 2e-3


def test_a_scene_changes_at_the_onset_and_everything_stays_in_its_place(board):
    seen, _, _ = play("scene_table_texture", steps=7, env=board)
    plain, _, _ = play("scene_table_texture", strength=0.0, steps=7, env=board)
    front = BOARD.cameras["front"]
    change = [
        np.abs(a[front].astype(int) - b[front]).mean() for a, b in zip(seen, plain, strict=True)
    ]
    assert max(change[:6]) == 0
    assert min(change[6:]) > 3
    assert all(np.array_equal(a[STATE], b[STATE]) for a, b in zip(seen, plain, strict=True))


def test_what_an_environment_cannot_have_is_refused():
    rig = dataclasses.replace(BOARD, change_scene=None, gripper_opens=None)
    for name, says in (("scene_brightness", "do not change"), ("action_noop", "actuators")):
        with pytest.raises(ValueError, match=says):
            Faulty(BlindBoard(), rig, Mixture.single(name))
    with pytest.raises(ValueError, match="seed"):
        Faulty(BlindBoard(), BOARD, Mixture()).reset()
