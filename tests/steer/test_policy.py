"""A policy under an edit from a chosen inference on."""

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.hooks import Add
from mistjax.policies.load import load_policy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.run import load_run
from mistjax.steer import Schedule, SteeredPolicy
from mistjax.steer import policy as module


def push(policy, strength=3.0):
    stack = policy.spec.stacks["vlm"]
    vector = jnp.ones((stack.depth, stack.width))
    return Add("vlm.resid", strength=jnp.float32(strength), vector=vector)


@pytest.fixture(scope="module")
def steered(policy):
    return SteeredPolicy(policy, push(policy), jnp.int32(2))


def test_it_is_the_bare_policy_before_the_onset_and_the_edited_one_after(policy, steered, obs, key):
    bare = policy.sample(obs, key)
    edited = policy.sample(obs, key, edits=(push(policy),))
    state = steered.initial_state(obs.batch_size)
    for inference in range(4):
        sample = steered.sample(obs, key, state=state)
        wanted = bare if inference < 2 else edited
        np.testing.assert_allclose(sample.actions, wanted.actions, atol=1e-5)
        assert (np.asarray(sample.aux["edited"]) == (inference >= 2)).all()
        state = sample.state


def test_rows_of_different_age_stay_apart_and_a_schedule_ends(policy, steered, obs, key):
    short = steered.replace(schedule=Schedule.of([1.0, 1.0, 0.0]))
    ages = jnp.arange(obs.batch_size)
    edited = short.sample(obs, key, state=ages).aux["edited"]
    np.testing.assert_array_equal(edited, (ages >= 2) & (ages < 4))


def test_another_strength_or_onset_does_not_recompile(policy, steered, obs, key):
    steered.sample(obs, key)
    compiled = module._sample._cache_size()
    for strength, onset in ((1.0, 0), (-2.0, 5)):
        SteeredPolicy(policy, push(policy, strength), jnp.int32(onset)).sample(obs, key)
    assert module._sample._cache_size() == compiled


def test_the_edit_is_part_of_the_fingerprint(policy, steered):
    prints = {
        policy.spec.fingerprint,
        steered.spec.fingerprint,
        steered.replace(edit=push(policy, 2.0)).spec.fingerprint,
        steered.replace(onset=jnp.int32(3)).spec.fingerprint,
    }
    assert len(prints) == 4


def test_a_prefix_is_refused(steered, obs, key):
    with pytest.raises(ValueError, match="without prefix"):
        steered.sample(obs, key, prefix=())


@pytest.mark.slow
def test_the_command_line_collects_under_a_shipped_direction(tmp_path, capsys):
    options = ["--out", str(tmp_path / "run"), "--episodes", "2", "--onset", "1"]
    command = [
        "collect",
        str(SHIPPED / "board_pi0"),
        *options,
        "--steer",
        str(SHIPPED / "board_mist"),
    ]
    assert main([*command, "look, affine", "1.0"]) == 0
    edited = [trace.edited for trace in load_run(tmp_path / "run").traces()]
    assert all(row is not None and not row[0] and row[1:].all() for row in edited)
    assert main([*command, "look", "1.0"]) == 2
    assert "choose one of" in capsys.readouterr().err


def test_the_board_policy_runs_under_an_edit_and_its_traces_say_so(tmp_path):
    bare = load_policy(SHIPPED / "board_pi0")
    steered = SteeredPolicy(bare, push(bare, 0.5), jnp.int32(3))
    run = collect(steered, tmp_path / "run", episodes=2, first_seed=11, num_envs=2)
    assert run.config["policy_fingerprint"] == steered.spec.fingerprint
    for trace in run.traces():
        assert trace.edited is not None
        np.testing.assert_array_equal(trace.edited, np.arange(len(trace.edited)) >= 3)
