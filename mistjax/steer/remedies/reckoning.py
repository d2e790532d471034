"""Dead reckoning: the state as it must be, from the last good one and what was commanded since.

The motion model is the input monitor's, fitted to clean episodes of this policy; nothing is known
of the robot. Its error grows like a random walk, with the root of the inferences since.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mistjax.detect.novelty.motion import MotionModel
from mistjax.steer.remedies.remedy import Proposal, Seen

WIDE = 3.0
"""Standard deviations that a sound sensor stays within."""


@flax.struct.dataclass
class Reckoned:
    """An estimate of the state, and how many inferences ago the sensor was last believed."""

    state: Float[Array, "b s"]
    age: Int[Array, " b"]


@flax.struct.dataclass
class DeadReckoning:
    """See the module.

    Attributes:
        motion: next state from state and command.
    """

    motion: MotionModel

    @property
    def _width(self) -> int:
        return self.motion.scale.shape[0]

    def blank(self, batch: int) -> Reckoned:
        return Reckoned(jnp.zeros((batch, self._width)), jnp.zeros(batch, jnp.int32))

    def note(self, seen: Seen, name: str) -> Reckoned:
        state = jnp.asarray(seen.obs.state)[:, : self._width]
        return Reckoned(state, jnp.zeros(len(state), jnp.int32))

    def advance(self, note: Reckoned, seen: Seen) -> Reckoned:
        return Reckoned(self.motion.predict(note.state, seen.command), note.age + 1)

    def propose(self, note: Reckoned, seen: Seen, name: str) -> Proposal:
        sensor = jnp.asarray(seen.obs.state)
        off = jnp.abs(sensor[:, : self._width] - note.state) / self.motion.scale[None]
        limit = WIDE * jnp.sqrt(jnp.maximum(note.age, 1).astype(jnp.float32))
        return Proposal(
            dataclasses.replace(seen.obs, state=sensor.at[:, : self._width].set(note.state)),
            jnp.isfinite(note.state).all(axis=1),
            largest(off) / limit,
        )


def largest(values: Float[Array, "b s"]) -> Float[Array, " b"]:
    """Of each batch element; Inf where one is not a number."""
    return jnp.where(jnp.isnan(values), jnp.inf, values).max(axis=1)
