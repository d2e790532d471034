"""Where nothing can be raised: one broken batch element alarms, holds still, harms no neighbour,
and is well again at the next inference.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.policies.wrapper import Wrapper
from mistjax.recover.mist import MistPolicy

KEYS = jax.random.split(jax.random.key(0), 3)
RAW = [{"observation/state": np.array([0, 0, 0.1, 0.01, grip])} for grip in (1.0, -1.0, 1.0)]
BAD = 1  # the row that is broken


@flax.struct.dataclass
class Undecodable(Wrapper):
    """Says of chosen rows that their tokens are no action: `bare` ones always, `steered` ones under
    edits. One program for every test here.
    """

    policy: Any
    bare: jax.Array
    steered: jax.Array

    def sample(self, obs, key, *, edits=(), **options):
        sample = self.policy.sample(obs, key, edits=edits, **options)
        lost = self.bare | self.steered if edits else self.bare
        actions = jnp.where(lost[:, None, None], 0.0, sample.actions)
        return sample.replace(actions=actions, aux={**sample.aux, "decode_ok": ~lost})


@pytest.fixture
def mist(make_mist, always):
    """Always alarms; every row decodes."""
    none = jnp.zeros(3, bool)
    mist = make_mist(always)
    return mist.replace(policy=Undecodable(mist.policy, none, none))


@pytest.fixture
def watched(mist, monitor):
    """Never alarms by its score, and has no remedy."""
    return MistPolicy(mist.policy, monitor, None, "monitor")


def with_remedy(mist, **changes):
    return mist.replace(remedy=mist.remedy.replace(**changes))


def broken(obs, what, value):
    """The observation with one number of row `BAD` replaced."""
    if what == "state":
        return obs.replace(state=jnp.asarray(obs.state).at[BAD, 2].set(value))
    camera = next(iter(obs.images))
    picture = jnp.asarray(obs.images[camera]).at[BAD, 3, 4, 1].set(value)
    return obs.replace(images={**obs.images, camera: picture})


def rows_of(tree, row):
    """One row of everything that a sample holds."""
    return [np.asarray(leaf)[row] for leaf in jax.tree.leaves((tree.actions, tree.aux, tree.state))]


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["state", "picture"])
def test_a_broken_observation_holds_still_and_leaves_its_neighbours_alone(mist, obs, what, value):
    state = mist.initial_state(3)
    fine = mist.sample(obs, KEYS, state=state)
    sample = mist.sample(broken(obs, what, value), KEYS, state=state)
    assert sample.aux["fallback"].tolist() == [False, True, False]
    assert sample.aux["alarm"][BAD]
    assert not sample.aux["edited"][BAD]
    assert np.isfinite(sample.actions).all()
    for row in (0, 2):
        assert same(rows_of(sample, row), rows_of(fine, row))
        assert sample.aux["edited"][row]
    chunk = mist.finish(sample, RAW)
    assert (chunk[BAD] == [0, 0, 0, -1]).all()  # no motion, and the gripper as it was
    assert np.array_equal(chunk[[0, 2]], mist.finish(fine, RAW)[[0, 2]])


def test_after_a_broken_inference_the_remedy_begins_at_the_next_alarm(mist, obs):
    first = mist.sample(broken(obs, "state", np.nan), KEYS, state=mist.initial_state(3))
    assert first.state.since.tolist() == [0, -1, 0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first.state))
    second = mist.sample(obs, KEYS, state=first.state)
    assert second.state.since.tolist() == [1, 0, 1]
    assert (second.aux["cause"] >= 0).all()
    assert second.aux["edited"].all()
    fresh = mist.sample(obs, KEYS, state=mist.initial_state(3))
    assert np.array_equal(second.actions[BAD], fresh.actions[BAD])


def test_a_broken_inference_does_not_end_a_remedy_that_runs(mist, obs):
    first = mist.sample(obs, KEYS, state=mist.initial_state(3))
    second = mist.sample(broken(obs, "picture", np.nan), KEYS, state=first.state)
    third = mist.sample(obs, KEYS, state=second.state)
    assert third.state.since.tolist() == [2, 2, 2]
    assert np.array_equal(third.aux["cause"], first.aux["cause"])
    assert third.aux["edited"].all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_when_only_the_steered_chunk_is_no_action_expect_the_bare_one(policy, mist, obs, value):
    table = mist.remedy.table
    arrays = {"vector": table.arrays["vector"].at[0, 0, 0].set(value)}
    mist = with_remedy(mist, table=table.replace(arrays=arrays))
    sample = mist.sample(obs, KEYS, state=mist.initial_state(3))
    bare = policy.sample(obs, KEYS)
    assert not sample.aux["fallback"].any()
    if not np.isfinite(value):
        assert not sample.aux["edited"].any()
        assert np.array_equal(sample.actions, bare.actions)
    assert np.isfinite(sample.actions).all()
    moved = np.abs(np.asarray(sample.actions - bare.actions))
    assert (moved <= np.asarray(mist.remedy.limits.cap) + 1e-5)[..., [0, 1, 2, 4]].all()


@pytest.mark.parametrize("strength", [np.nan, np.inf, -np.inf])
def test_a_strength_or_weight_that_is_no_number_gives_the_bare_chunk(policy, mist, obs, strength):
    table = mist.remedy.table
    strengths = with_remedy(mist, table=table.replace(strengths=table.strengths * strength))
    for changed in (strengths, with_remedy(mist, weight=strength)):
        sample = changed.sample(obs, KEYS, state=mist.initial_state(3))
        assert np.array_equal(sample.actions, policy.sample(obs, KEYS).actions)


def test_undecodable_tokens_hold_still_or_leave_the_bare_chunk(policy, mist, obs):
    rows = jnp.arange(3)
    fine = mist.sample(obs, KEYS, state=mist.initial_state(3))
    mist = mist.replace(policy=Undecodable(policy, rows == 0, rows == 1))
    sample = mist.sample(obs, KEYS, state=mist.initial_state(3))
    bare = policy.sample(obs, KEYS)
    assert sample.aux["alarm"].all()
    assert sample.aux["fallback"].tolist() == [True, False, False]
    assert sample.aux["edited"].tolist() == [False, False, True]
    assert np.array_equal(sample.actions[1], bare.actions[1])
    assert np.array_equal(sample.actions[2], fine.actions[2])
    assert (mist.finish(sample, RAW)[0] == [0, 0, 0, 1]).all()


def test_a_monitor_without_remedy_holds_still_too(policy, mist, watched, obs):
    edit = mist.remedy.table.select(jnp.zeros(3, jnp.int32), 0.0)
    state = watched.initial_state(3)
    bare = policy.finish(policy.sample(obs, KEYS), RAW)
    unsound = broken(obs, "state", np.inf)
    breaking = edit.replace(strength=jnp.array([0.0, np.nan, 0.0]))
    for seen, edits in ((unsound, (edit,)), (obs, (breaking,))):
        sample = watched.sample(seen, KEYS, state=state, edits=edits)
        assert sample.aux["fallback"].tolist() == [False, True, False]
        assert sample.aux["alarm"].tolist() == [False, True, False]
        chunk = watched.finish(sample, RAW)
        assert np.array_equal(chunk[[0, 2]], bare[[0, 2]])
        assert (chunk[BAD] == [0, 0, 0, -1]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_or_score_that_is_not_finite_holds_still(mist, watched, obs, value):
    detector = watched.monitor.detector
    head = {**detector.layers[0], "bias": detector.layers[0]["bias"] + value}
    layers = (head, *detector.layers[1:])
    monitor = watched.monitor.replace(detector=detector.replace(layers=layers))
    edit = mist.remedy.table.select(jnp.zeros(3, jnp.int32), 0.0)
    state = watched.initial_state(3)
    sample = watched.replace(monitor=monitor).sample(obs, KEYS, state=state, edits=(edit,))
    assert sample.aux["fallback"].all()
    assert sample.aux["alarm"].all()
    assert (watched.finish(sample, RAW)[:, :, :3] == 0).all()
