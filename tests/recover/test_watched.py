"""Watching the inputs changes no action, and tells what it found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect.novelty.artifact import save_inputs
from mistjax.detect.novelty.build import build_inputs
from mistjax.detect.novelty.fit import Recorded, calibrate_inputs, fit_inputs
from mistjax.detect.novelty.reading import COMMAND, FIELDS, Reading, Reads
from mistjax.recover.artifact import load_mist
from mistjax.recover.mist import MistPolicy
from mistjax.recover.watched import Watched
from mistjax.rollouts.run import memory_run
from mistjax.rollouts.trace import Trace
from tests.recover.conftest import PROMPT

KEY = jax.random.key(0)
EPISODES, LOOKS = 12, 4


def observation(policy, rng, rows):
    def raw():
        return {
            "observation/image": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            "observation/wrist_image": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            "observation/state": rng.normal(size=5).astype(np.float32),
            "prompt": PROMPT,
        }

    return policy.prepare([raw() for _ in range(rows)])


@pytest.fixture(scope="module")
def reads(policy):
    """aux of `Reads` over some episodes, [E,N,...]."""
    rng, looks = np.random.default_rng(0), []
    for _ in range(LOOKS):
        sample = Reads(policy).sample(observation(policy, rng, EPISODES), KEY)
        looks.append({name: np.asarray(sample.aux[name]) for name in FIELDS})
    return {name: np.stack([look[name] for look in looks], 1) for name in FIELDS}


@pytest.fixture(scope="module")
def inputs(policy, reads):
    fields = {name.removeprefix("read/"): reads[name] for name in FIELDS if name != COMMAND}
    episodes = Recorded(Reading(**fields), reads[COMMAND], np.ones((EPISODES, LOOKS), bool))
    fitted = fit_inputs(policy, episodes, components=4, hidden=(8,), steps=3)
    return calibrate_inputs(fitted, episodes, 0.5)


def test_the_actions_are_those_of_the_policy_inside(policy, inputs, obs):
    watched = Watched(policy, inputs)
    bare, seen = policy.sample(obs, KEY), watched.sample(obs, KEY)
    assert np.array_equal(bare.actions, seen.actions)
    assert seen.aux["unsound"].shape == (3,)
    assert seen.aux["evidence/ratios"].shape == (3, len(inputs.inputs), 3)
    assert watched.spec.fingerprint != policy.spec.fingerprint
    assert watched.spec.inputs == ("front", "wrist", "state", "instruction")


def test_the_state_goes_on_from_look_to_look_and_is_each_rows_own(policy, inputs, obs):
    watched = Watched(policy, inputs)
    state = watched.initial_state(3)
    for looks in range(1, 3):
        sample = watched.sample(obs, KEY, state=state)
        state = sample.state
        assert state.inputs.looks.tolist() == [looks] * 3
    assert np.array_equal(state.inputs.command, sample.actions[:, :4, :4])


def test_a_broken_state_is_unsound_in_its_row_only(policy, inputs, obs):
    broken = dataclasses.replace(obs, state=jnp.asarray(obs.state).at[1, 0].set(jnp.nan))
    watched = Watched(policy, inputs.replace(threshold=_high(inputs)))
    sample = watched.sample(broken, KEY)
    assert sample.aux["unsound"].tolist() == [False, True, False]
    assert sample.aux["named"].tolist() == [-1, 2, -1]


def test_a_monitor_of_failures_inside_keeps_its_own_alarm(policy, inputs, always, obs):
    mist = MistPolicy(policy, always)
    watched = Watched(mist, inputs.replace(threshold=_high(inputs)))
    sample = watched.sample(obs, KEY)
    assert sample.aux["alarm"].all()
    assert not sample.aux["unsound"].any()


def _high(inputs):
    return inputs.threshold.replace(upper=jnp.array([1e9]))


def test_a_folder_with_a_monitor_of_inputs_only_can_watch(policy, inputs, tmp_path):
    save_inputs(tmp_path, inputs, policy.spec.fingerprint)
    assert isinstance(load_mist(tmp_path, policy, "monitor"), Watched)
    with pytest.raises(FileNotFoundError):
        load_mist(tmp_path, policy, "mist")


def traces(policy, reads, first_seed, **info):
    row = {name: reads[name] for name in FIELDS}
    return {
        first_seed + i: Trace(
            seed=first_seed + i,
            env_id="board",
            task="t",
            prompt=PROMPT,
            policy="p",
            policy_fingerprint=policy.spec.fingerprint,
            success=True,
            state=np.zeros((LOOKS, 5), np.float32),
            actions=np.zeros((LOOKS, 4), np.float32),
            chunks=np.zeros((LOOKS, 8, 4), np.float32),
            inference_step=np.arange(LOOKS, dtype=np.int32),
            timings_ms=np.zeros(LOOKS, np.float32),
            aux={name: value[i] for name, value in row.items()},
            info=info,
        )
        for i in range(EPISODES)
    }


def test_building_refuses_what_makes_the_promise_void(policy, reads, tmp_path):
    config = {"policy_fingerprint": policy.spec.fingerprint}
    clean, other, faulty = (
        memory_run(config, traces(policy, reads, seed, **info))
        for seed, info in ((0, {}), (100, {}), (200, {"fault": "push"}))
    )
    build = {"components": 4, "hidden": (8,), "steps": 2, "alpha": 0.5}
    with pytest.raises(ValueError, match="both sets"):
        build_inputs(policy, [clean], [clean], tmp_path, **build)
    with pytest.raises(ValueError, match="not clean"):
        build_inputs(policy, [clean], [faulty], tmp_path, **build)
    stranger = dataclasses.replace(other, config={"policy_fingerprint": "x"})
    with pytest.raises(ValueError, match="another policy"):
        build_inputs(policy, [clean], [stranger], tmp_path, **build)


@pytest.mark.slow
def test_building_writes_a_calibrated_monitor(policy, reads, tmp_path):
    config = {"policy_fingerprint": policy.spec.fingerprint}
    clean, other = (memory_run(config, traces(policy, reads, seed)) for seed in (0, 100))
    build = {"components": 4, "hidden": (8,), "steps": 2, "alpha": 0.5}
    built = build_inputs(policy, [clean], [other], tmp_path, **build)
    assert built.threshold.n_calibration == EPISODES
    assert (tmp_path / "inputs.json").exists()
