"""The gate that is closed while the action stays what it was going to be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.demo import MIST, POLICY
from mistjax.envs.board.env import BoardEnv
from mistjax.policies import load_policy
from mistjax.recover.artifact import load_mist
from mistjax.recover.decision import DECISIONS
from mistjax.recover.gate import ActionGate
from mistjax.studies.arms import Kit

KEY = jax.random.key(3)


@pytest.fixture
def gate(policy):
    spec = dataclasses.replace(policy.spec, execute_steps=2)
    return ActionGate.of(spec, 0.1, policy.chunk_width)


def test_it_opens_where_a_planned_action_changes(gate):
    plan, opened = gate.start(4, 2)
    assert opened.all()
    first = jnp.zeros((2, 4, 5))
    plan, opened = gate.next(first, plan)
    assert opened.all()  # nothing was planned
    later = first.at[:, 2:].set(1.0).at[1, 1, 0].add(1.5 * gate.tolerance[0])
    plan, opened = gate.next(later, plan)
    assert opened.tolist() == [False, True]  # what was not planned does not count
    np.testing.assert_array_equal(plan, later)
    assert gate.next(later.at[0, 0, 0].set(jnp.nan), plan)[1][0]


def test_a_policy_that_executes_whole_chunks_has_no_plan_to_compare_with(policy):
    spec = dataclasses.replace(policy.spec, execute_steps=4)
    with pytest.raises(ValueError, match="executes all 4 actions"):
        ActionGate.of(spec, 0.1, policy.chunk_width)
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        ActionGate.of(spec, 1.5, policy.chunk_width)


def wide(gate):
    return gate.replace(tolerance=jnp.full_like(gate.tolerance, jnp.inf))


def run(mist, obs, inferences):
    state, samples = mist.initial_state(obs.batch_size), []
    for _ in range(inferences):
        samples.append(mist.sample(obs, KEY, state=state))
        state = samples[-1].state
    return samples


@pytest.mark.slow
def test_an_alarm_that_changes_no_action_is_not_explained(make_mist, monitor, always, obs, gate):
    """The first inference has no plan to agree with: the alarm comes at the second."""
    late = jnp.full(10, -jnp.inf).at[0].set(jnp.inf)
    late = monitor.replace(threshold=monitor.threshold.replace(upper=late))
    bare = run(make_mist(monitor), obs, 3)
    for gated, asked in ((None, True), (gate, True), (wide(gate), False)):
        mist = dataclasses.replace(make_mist(late), gate=gated)
        _, second, _ = run(mist, obs, 3)
        if gated is gate:  # the same noise, so that the chunk begins as the last one did
            rest = np.asarray(bare[0].actions)[:, 2:]
            asked = (
                np.abs(np.asarray(bare[1].actions)[:, :2] - rest) > np.asarray(gate.tolerance)
            ).any((1, 2))
        np.testing.assert_array_equal(second.aux["attributed"], np.broadcast_to(asked, 3))
        if not np.any(asked):
            np.testing.assert_array_equal(second.actions, bare[1].actions)
            assert (second.aux["why/text"] == 0).all()


@pytest.mark.slow
def test_the_shipped_loop_remembers_only_looks_that_changed_the_action():
    """Shut, what is remembered is the first look, and no more; open, every calm one."""
    policy = load_policy(POLICY)
    loop = Kit.load(policy, MIST).repaired(DECISIONS["mist"], "mist")
    gate = ActionGate.of(policy.spec, 0.1, policy.chunk_width)
    raws = [BoardEnv().reset(seed=1)[0]]
    obs = policy.prepare(raws)
    remembered = {}
    for name, gated in (("none", None), ("open", gate), ("shut", wide(gate))):
        samples = run(dataclasses.replace(loop, gate=gated), obs, 4)
        remembered[name] = np.array([s.aux["remembered"][0].any() for s in samples])
        np.testing.assert_array_equal(samples[0].actions, policy.sample(obs, KEY).actions)
    assert remembered["none"].all()
    assert remembered["shut"].tolist() == [True, True, False, False]
    assert (remembered["open"] <= remembered["none"]).all()


@pytest.mark.slow
def test_the_shipped_steering_keeps_its_fingerprint_without_a_gate():
    policy = load_policy(POLICY)
    steer = load_mist(MIST, policy, "mist").policy
    gate = ActionGate.of(policy.spec, 0.1, policy.chunk_width)
    gated = dataclasses.replace(steer, gate=gate)
    assert gated.spec.fingerprint != steer.spec.fingerprint
    assert dataclasses.replace(gated, gate=None).spec.fingerprint == steer.spec.fingerprint
