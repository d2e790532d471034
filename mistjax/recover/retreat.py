"""`Retreat`: at an alarm the robot undoes its last moves, and then the policy tries again.

The usual answer to a monitor of failures, and a baseline of repair: it knows nothing of the cause.
The last executed commands go out in the opposite direction, last one first, with the gripper as it
was then; after a pause another alarm may begin another retreat. For policies whose actions are
moves, not poses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, PolicySpec, Sample
from mistjax.policies.wrapper import Wrapper

CHUNKS = 2
"""Inferences whose moves are undone."""
PAUSE = 6
"""Inferences from the start of a retreat to the next one, at the least."""


@flax.struct.dataclass
class RetreatState:
    """Of each batch element's episode: the policy's own state, the last executed commands (newest
    chunk first), and the inferences since a retreat began.
    """

    policy: Any
    done: Float[Array, "b c e a"]
    since: Int[Array, " b"]


@flax.struct.dataclass
class Retreat(Wrapper):
    """See the module.

    Attributes:
        policy: one whose samples say `alarm`.
        mirror: in model units, the command that undoes one is `mirror` minus it.
        gripper: place of the gripper command, or None (static).
    """

    policy: Policy
    mirror: Float[Array, " a"]
    gripper: int | None = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, policy: Policy) -> Retreat:
        """Around a monitored policy.

        Raises:
            ValueError: its actions are relative to the state, so they cannot be undone without it.
        """
        spec = policy.spec
        if len(spec.action_offset) < spec.action_dim or None in spec.action_offset:
            raise ValueError(f"{spec.name!r} commands poses, not moves: it cannot be undone.")
        offset, scale = np.array(spec.action_offset), np.array(spec.action_scale, np.float64)
        mirror = np.zeros(policy.chunk_width, np.float32)
        mirror[: spec.action_dim] = -2 * offset / np.where(scale == 0, 1, scale)
        return cls(policy, jnp.asarray(mirror), spec.gripper_index)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The policy's, with a name and a fingerprint of its own."""
        return self.policy.spec.wrapped("retreat", (self.mirror, CHUNKS, PAUSE))

    def initial_state(self, batch: int) -> RetreatState:
        shape = (batch, CHUNKS, self.policy.spec.execute_steps, self.chunk_width)
        since = jnp.full(batch, PAUSE, jnp.int32)
        return RetreatState(self.policy.initial_state(batch), jnp.zeros(shape), since)

    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Any = None,
    ) -> Sample:
        """See `Policy.sample`; `state` is `initial_state` or the last sample's."""
        state = self.initial_state(obs.batch_size) if isinstance(state, tuple) else state
        sample = self.policy.sample(
            obs, key, state=state.policy, edits=edits, taps=taps, prefix=prefix
        )
        return _retreated(self.mirror, sample, state, self.gripper)


@functools.partial(jax.jit, static_argnames="gripper")
def _retreated(mirror: Array, sample: Sample, state: RetreatState, gripper: int | None) -> Sample:
    execute = state.done.shape[2]
    begins = sample.aux["alarm"] & ~sample.aux["fallback"] & (state.since >= PAUSE)
    since = jnp.where(begins, 0, state.since + 1)
    back = since < CHUNKS
    place = jnp.clip(since, 0, CHUNKS - 1)
    moves = jnp.take_along_axis(state.done, place[:, None, None, None], axis=1)[:, 0, ::-1]
    undone = mirror[None, None] - moves
    if gripper is not None:
        undone = undone.at[..., gripper].set(moves[..., gripper])
    held = jnp.repeat(undone[:, -1:], sample.actions.shape[1] - execute, axis=1)
    chunk = jnp.concatenate([undone, held], axis=1)
    actions = jnp.where(back[:, None, None], chunk, sample.actions)
    newest = jnp.concatenate([actions[:, None, :execute], state.done[:, :-1]], axis=1)
    done = jnp.where(back[:, None, None, None], state.done, newest)
    aux = {**sample.aux, "edited": back}
    return sample.replace(actions=actions, aux=aux, state=RetreatState(sample.state, done, since))  # type: ignore[attr-defined]
