"""At an alarm the last moves are undone, once, and the policy goes on."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.policies.protocol import Sample
from mistjax.policies.wrapper import Wrapper
from mistjax.recover.retreat import CHUNKS, PAUSE, Retreat

ALARMS = [False, False, False, True, True, True, False, False, False, False, False]


@dataclasses.dataclass(frozen=True)
class Scripted(Wrapper):
    """Commands its number of inferences; two actions of a chunk of four are executed."""

    alarms: Any
    chunk_width = 3
    spec = SimpleNamespace(
        name="toy", execute_steps=2, action_dim=3, action_offset=(0.5, 0.0, 0.0),
        action_scale=(2.0, 1.0, 1.0), gripper_index=2,
    )  # fmt: skip

    def initial_state(self, batch):
        return jnp.zeros(batch, jnp.int32)

    def sample(self, obs, key, *, state=(), edits=(), taps=(), prefix=None):
        number = 10.0 * (state[:, None] + 1).astype(float) + jnp.arange(4.0)[None]
        actions = jnp.stack([number, -number, number], axis=-1)
        alarm = jnp.asarray(self.alarms)[state]
        aux = {"alarm": alarm, "fallback": jnp.zeros_like(alarm)}
        return Sample(actions, {}, aux, state + 1)


@pytest.fixture
def played(obs):
    """The chunks of one episode."""
    policy = Retreat.of(Scripted(jnp.asarray(ALARMS)))
    state, chunks = policy.initial_state(obs.batch_size), []
    for _ in ALARMS:
        sample = policy.sample(obs, jax.random.key(0), state=state)
        chunks.append(np.asarray(sample.actions[0]))
        state = sample.state
    return np.stack(chunks)


def test_the_last_moves_go_out_backwards_in_robot_units(played):
    undone = played[3 : 3 + CHUNKS, :2].reshape(-1, 3)
    done = played[1:3, :2].reshape(-1, 3)[::-1]
    robot = lambda moves: moves[:, :2] * [2.0, 1.0] + [0.5, 0.0]  # noqa: E731
    np.testing.assert_allclose(robot(undone), -robot(done), atol=1e-5)
    np.testing.assert_array_equal(undone[:, 2], done[:, 2])  # the gripper as it was


def test_otherwise_the_policy_acts_and_another_retreat_waits(played):
    own = [*range(3), *range(3 + CHUNKS, 3 + PAUSE)]
    assert [played[i, 0, 0] for i in own] == [10.0 * (i + 1) for i in own]


def test_poses_are_refused():
    poses = dataclasses.replace(Scripted(jnp.asarray(ALARMS)))
    spec = SimpleNamespace(name="toy", action_dim=3, action_offset=(None, 0.0, 0.0))
    object.__setattr__(poses, "spec", spec)
    with pytest.raises(ValueError, match="commands poses"):
        Retreat.of(poses)
