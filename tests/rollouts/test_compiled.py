"""The same point and the same policy as in `conftest`, as one program: the host loop's episodes."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.observation import Observation
from mistjax.rollouts import compiled, run_episodes
from mistjax.rollouts.compiled import CompiledRollouts

from .conftest import PointEnv, PointPolicy
from .devices import talking

SEEDS = tuple(range(13))


class PointState(NamedTuple):
    point: Any
    drift: Any
    steps: Any
    done: Any
    success: Any


@dataclasses.dataclass(frozen=True)
class FunctionalPoint:
    causes = ("left the field", "timeout")

    def reset(self, start):
        false = jnp.bool_(False)
        return PointState(start["point"], start["drift"], jnp.int32(0), false, false)

    def step(self, state, action):
        point = state.point + 0.5 * action + state.drift
        distance, steps = jnp.linalg.norm(point), state.steps + 1
        success = distance < 0.3
        done = success | (distance > 3) | (steps >= 20)
        new = PointState(point, state.drift, steps, done, success)
        return jax.tree.map(lambda old, now: jnp.where(state.done, old, now), state, new)

    def observe(self, state):
        return {"observation/state": state.point}, state

    def failure_cause(self, state):
        return jnp.where(jnp.linalg.norm(state.point) > 3, 0, 1)


@jax.tree_util.register_static
class TracedPolicy(PointPolicy):
    def encode_prompts(self, prompts):
        ones = np.ones((len(prompts), 1), np.int32)
        return ones, ones.astype(bool)

    def observe(self, raw, words):
        return Observation({}, {}, raw["observation/state"], *words)

    def act(self, sample, raw):
        return jnp.clip(sample.actions, -1, 1)


@jax.tree_util.register_pytree_node_class
class WidePolicy(TracedPolicy):
    """Adds what a matrix, large enough to be spread, makes of the point: nothing."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def tree_flatten(self):
        return (self.matrix,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)

    def sample(self, obs, key, *, state=(), edits=(), taps=(), prefix=None):
        hidden = jnp.tanh(obs.state @ self.matrix)
        obs = dataclasses.replace(obs, state=obs.state + hidden @ self.matrix.T)
        return super().sample(obs, key, state=state, edits=edits, taps=taps)


@pytest.fixture(scope="module")
def policy():
    return TracedPolicy()


def table(rollouts, seeds, drift=0.0):
    env = PointEnv()
    points = np.stack([env.reset(seed=s)[0]["observation/state"] for s in seeds])
    start = {"point": points, "drift": np.full(len(seeds), drift, np.float32)}
    return rollouts.table(seeds, start, ["go to the middle"] * len(seeds))


def check(outcomes, run):
    for i, seed in enumerate(outcomes.seeds):
        trace = run.trace(int(seed))
        assert outcomes.success[i] == trace.success
        assert outcomes.steps[i] == len(trace.actions)
        assert outcomes.inferences[i] == len(trace.chunks)
        alarms = np.flatnonzero(trace.alarm)
        assert outcomes.alarm[i] == (alarms[0] if len(alarms) else -1)
        assert outcomes.edited[i] == trace.edited.sum()
        cause = None if outcomes.cause[i] < 0 else FunctionalPoint.causes[outcomes.cause[i]]
        assert (cause == "left the field") == (trace.failure_cause == "left the field")


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_a_seed_is_the_host_loops_episode_whatever_runs_beside_it(policy, rows):
    rollouts = CompiledRollouts(policy, FunctionalPoint(), num_envs=rows, rounds=3)
    outcomes = rollouts.run(table(rollouts, SEEDS))
    check(outcomes, run_episodes(policy, PointEnv, SEEDS, progress=False))
    assert outcomes.success.sum() > 0


def test_episodes_of_another_perturbation_recompile_nothing(policy):
    rollouts = CompiledRollouts(policy, FunctionalPoint(), num_envs=4, rounds=3)
    rollouts.run(table(rollouts, SEEDS))
    traces = policy.compiles
    outcomes = rollouts.run(table(rollouts, SEEDS, drift=0.4))
    assert policy.compiles == traces
    check(
        outcomes,
        run_episodes(policy, PointEnv, SEEDS, perturbation={"drift": 0.4}, progress=False),
    )
    assert not outcomes.success.all()


def test_devices_do_not_talk_and_do_not_matter(policy):
    devices = jax.devices()[:2]
    assert len(devices) == 2
    together = CompiledRollouts(policy, FunctionalPoint(), num_envs=4, rounds=3, devices=devices)
    alone = CompiledRollouts(policy, FunctionalPoint(), num_envs=4, rounds=3)
    both = together.run(table(together, SEEDS)), alone.run(table(alone, SEEDS))
    jax.tree.map(np.testing.assert_array_equal, *map(dataclasses.asdict, both))
    assert not talking(together.prepare(table(together, SEEDS)).compiled.as_text() or "")


def test_a_policy_that_a_group_holds_together_acts_as_one_that_each_device_holds(policy):
    devices = jax.devices()[:2]
    wide = WidePolicy(jnp.zeros((2, compiled.SPREAD)))
    options = {"num_envs": 4, "rounds": 3, "devices": devices, "fsdp": 2}
    spread = CompiledRollouts(wide, FunctionalPoint(), **options)
    alone = CompiledRollouts(policy, FunctionalPoint(), num_envs=4, rounds=3)
    both = spread.run(table(spread, SEEDS)), alone.run(table(alone, SEEDS))
    jax.tree.map(np.testing.assert_array_equal, *map(dataclasses.asdict, both))
    run = spread.prepare(table(spread, SEEDS))
    assert talking(run.compiled.as_text() or "") == {(0, 1)}
    assert "4 environments on 2 devices, the policy spread over 2" in run.describe()


def test_large_arrays_are_cut_along_the_longest_axis_that_divides():
    mesh = jax.make_mesh((1, 2), (compiled.AXIS, compiled.FSDP))
    shapes = {"layers": (18, 64, 128), "odd": (4097,), "square": (64, 64), "small": (2, 4)}
    policy = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    parts = {"layers": (18, 64, 64), "odd": (4097,), "square": (64, 32), "small": (2, 4)}
    for name, placed in compiled.spread(mesh, policy).items():
        assert placed.sharding.shard_shape(placed.shape) == parts[name], name


@pytest.mark.parametrize("fsdp", [0, 3])
def test_groups_that_the_devices_do_not_make_are_refused(policy, fsdp):
    with pytest.raises(ValueError, match=f"fsdp is {fsdp}: expected a divisor of the number of"):
        CompiledRollouts(policy, FunctionalPoint(), fsdp=fsdp, devices=jax.devices()[:2])


def test_shares_deal_every_episode_once():
    for episodes in (1, 5, 8):
        seeds = np.arange(episodes)
        start = {"x": seeds}
        words = np.zeros((episodes, 1, 1), np.int32), np.ones((episodes, 1, 1), bool)
        dealt = compiled.deal(compiled.Table(seeds, start, words), 4).seed.reshape(4, -1)
        counts = compiled.shares(episodes, 4)
        begun = np.concatenate([row[:n] for row, n in zip(dealt, counts, strict=True)])
        np.testing.assert_array_equal(np.sort(begun), seeds)
        for device, (row, n) in enumerate(zip(dealt, counts, strict=True)):
            np.testing.assert_array_equal(row[:n], np.arange(n) * 4 + device)


def test_a_policy_that_prepares_on_the_host_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="PointPolicy does not run inside a compiled rollout"):
        CompiledRollouts(PointPolicy(), FunctionalPoint())


def test_rows_that_do_not_divide_among_the_devices_are_refused(policy):
    with pytest.raises(ValueError, match="num_envs is 3: expected a multiple of the 2 devices"):
        CompiledRollouts(policy, FunctionalPoint(), num_envs=3, devices=jax.devices()[:2])
