"""Groups of activations: from recorded episodes, and from prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Tap
from mistjax.rollouts.run import memory_run
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Trace
from mistjax.steer import (
    build_vectors,
    load_steering,
    observation_group,
    outcome_groups,
    write_vectors,
)

TAP = Tap("vlm.resid", (1,), "text", "mean")
STEPPED = Tap("action.resid", (0,), "action", "mean")


def episode(seed, policy, success, inferences):
    """Failures carry 1 at the first inference and 5 later; successes 0."""
    vlm = np.full((inferences, 1, 32), 5.0, np.float32)
    vlm[0] = 1.0
    action = np.full((inferences, 3, 1, 16), float(seed), np.float32)
    return Trace(
        seed=seed,
        env_id="none",
        task="t",
        prompt="p",
        policy="random",
        policy_fingerprint=policy.spec.fingerprint,
        success=success,
        state=np.zeros((inferences, 5), np.float32),
        actions=np.zeros((inferences, 4), np.float32),
        chunks=np.zeros((inferences, 4, 4), np.float32),
        inference_step=np.arange(inferences),
        timings_ms=np.ones(inferences),
        features={str(TAP): vlm * (not success), str(STEPPED): action},
    )


@pytest.fixture(scope="module")
def run(policy):
    lengths = {0: (True, 2), 1: (False, 5), 2: (True, 3), 3: (False, 2)}
    return memory_run({}, {s: episode(s, policy, ok, n) for s, (ok, n) in lengths.items()})


def test_each_episode_is_one_example_whatever_its_length(run):
    success, failure = outcome_groups(run, TAP)
    assert success.shape == failure.shape == (2, 1, 32)
    np.testing.assert_allclose(success, 0)
    np.testing.assert_allclose(failure[:, 0, 0], [(1 + 4 * 5) / 5, 3.0])


def test_only_the_first_inferences_count_when_asked(run):
    _, failure = outcome_groups(run, TAP, first=1)
    np.testing.assert_allclose(failure, 1)


def test_flow_steps_are_averaged(run):
    success, failure = outcome_groups(run, STEPPED)
    np.testing.assert_allclose(success[:, 0, 0], [0, 2])
    np.testing.assert_allclose(failure[:, 0, 0], [1, 3])


def test_outcomes_must_differ_and_taps_be_reduced(run, policy):
    only = memory_run({}, {0: episode(0, policy, True, 2)})
    with pytest.raises(ValueError, match="all 1 episodes succeeded"):
        outcome_groups(only, TAP)
    with pytest.raises(ValueError, match="keeps its tokens"):
        outcome_groups(run, Tap("vlm.resid", (1,), "text"))


def test_vectors_from_a_run_point_from_failure_to_success(run, policy):
    artifact = build_vectors(policy, {}, run=run, taps=[TAP], first=1)
    vector = artifact.directions["success@vlm.resid"]
    np.testing.assert_allclose(vector.vector[1], -np.ones(32), atol=1e-5)


def test_written_vectors_answer_every_modality_in_the_action_expert(run, policy, tmp_path):
    with RunWriter.open(tmp_path / "run", {"policy": "random"}) as writer:
        for trace in run.traces():
            writer.add(trace)
    out = tmp_path / "out"
    summary = write_vectors(policy, out, concepts={"slow": ["slow*"]}, run=tmp_path / "run")
    artifact = load_steering(out, policy.spec)
    assert set(artifact.directions) == {"slow", "success@vlm.resid", "success@action.resid"}
    assert set(artifact.causes) == {*policy.spec.cameras, "text", "state"}
    assert artifact.table().site == "action.resid"
    assert "success@vlm.resid" in summary and "| slow |" in summary


def test_a_run_of_another_policy_is_refused(run, planted):
    with pytest.raises(ValueError, match="recorded with policy"):
        build_vectors(planted, {}, run=run, taps=[TAP])


def test_each_observation_is_one_example_in_its_place(policy, raw, key):
    """Six in batches of four: the second batch is filled up with the first rows."""
    group = observation_group(policy, raw, STEPPED, key, batch=4)
    assert group.shape == (6, 1, 16)
    keys = jax.random.split(key, 6)
    for rows in ([0, 1, 2, 3], [4, 5, 0, 1]):
        obs = policy.prepare([raw[i] for i in rows])
        values = policy.sample(obs, keys[jnp.array(rows)], taps=(STEPPED,)).taps[str(STEPPED)]
        np.testing.assert_allclose(group[rows, 0], values[:, 0].mean(0), atol=1e-5)
