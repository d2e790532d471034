"""Dead reckoning that looks: what was commanded says where the state should be, and the cameras
correct it.

A Kalman filter, entry by entry. Its prediction is the motion model's, whose error grows at every
inference; its measurements are the odometer's, one of each camera, of the motion since the last
good look, which do not drift; where they were found not to help, their noise is infinite. A camera
that is far from the prediction is not believed. Entries in which the sensor has stayed near the
estimate since that look keep the sensor: a wrong position is no reason to guess the fingers. A
sensor that stands still is not said to agree: a frozen one agrees with a robot that waits. A camera
that is itself unsound is believed all the same, unless it is far off: where both fail, a frozen
picture holds the estimate back.

Source of the filter: Kalman, Journal of Basic Engineering 82, 1960.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mistjax.detect.novelty.odometry import Odometer
from mistjax.steer.remedies.dynamics import Dynamics
from mistjax.steer.remedies.reckoning import WIDE, largest
from mistjax.steer.remedies.remedy import Proposal, Seen

STILL = 1.01
"""Residual at least of a sensor that stands still: such a look does not speak for it."""


@flax.struct.dataclass
class Sighted:
    """An estimate of the state.

    Attributes:
        state: it.
        variance: of its error, if the cameras' errors at different looks were independent: what the
            next correction is weighted by, too small for anything else.
        disputed: entries in which the sensor was too far from it at any look since the last good
            one.
        sensor: at this look.
        moves: whether it moved since the look before, by more than the motion model is off.
        anchor, tokens: sensor and camera tokens of the last good look.
    """

    state: Float[Array, "b s"]
    variance: Float[Array, "b s"]
    disputed: Bool[Array, "b s"]
    sensor: Float[Array, "b s"]
    moves: Bool[Array, " b"]
    anchor: Float[Array, "b s"]
    tokens: Float[Array, "b c t"]


@flax.struct.dataclass
class SightedReckoning:
    """See the module.

    Attributes:
        motion: next state from state and command.
        odometer: the cameras' view of the motion.
        noise: mean squared error of that view, or more: see `fit_sighted`.
        usual: distance of the estimate from a sound sensor, of each entry by itself, that 95% of
            the inferences of the median clean episode keep.
        joint: the same of the largest distance of all, over its `usual`.
    """

    motion: Dynamics
    odometer: Odometer
    noise: Float[Array, "c s"]
    usual: Float[Array, " s"]
    joint: Float[Array, "1"]

    @property
    def _width(self) -> int:
        return self.motion.scale.shape[0]

    def blank(self, batch: int) -> Sighted:
        state = jnp.zeros((batch, self._width))
        return self.start(state, jnp.zeros((batch, *self.odometer.mean.shape)))

    def note(self, seen: Seen, name: str) -> Sighted:
        return self.start(self._sensor(seen), _tokens(seen))

    def advance(self, note: Sighted, seen: Seen) -> Sighted:
        return self.step(note, self._sensor(seen), _tokens(seen), seen.command)

    def start(self, sensor: Float[Array, "b s"], tokens: Float[Array, "b c t"]) -> Sighted:
        """The estimate at a good look."""
        nothing = jnp.zeros_like(sensor)
        return Sighted(
            state=sensor,
            variance=nothing,
            disputed=nothing > 0,
            sensor=sensor,
            moves=jnp.zeros(len(sensor), bool),
            anchor=sensor,
            tokens=tokens,
        )

    def view(self, note: Sighted, tokens: Float[Array, "b c t"]) -> Float[Array, "b c s"]:
        """The state now, as each camera sees it."""
        return note.anchor[:, None] + self.odometer.moved(tokens, note.tokens, note.anchor)

    def step(
        self,
        note: Sighted,
        sensor: Float[Array, "b s"],
        tokens: Float[Array, "b c t"],
        command: Float[Array, "b e a"],
    ) -> Sighted:
        """The estimate one inference later."""
        state = self.motion.predict(note.state, command)
        variance = note.variance + jnp.square(self.motion.scale)[None]
        away = self.view(note, tokens) - state[:, None]
        near = jnp.square(away) <= WIDE**2 * (variance[:, None] + self.noise[None])
        trust = jnp.where(near, 1 / self.noise[None], 0.0)
        variance = 1 / (1 / variance + trust.sum(1))
        state += variance * jnp.where(near, trust * away, 0.0).sum(1)
        disputed = note.disputed | ~(jnp.abs(sensor - state) <= self.usual[None])
        moves = (jnp.abs(sensor - note.sensor) > self.motion.scale[None]).any(axis=1)
        return dataclasses.replace(
            note, state=state, variance=variance, disputed=disputed, sensor=sensor, moves=moves
        )

    def propose(self, note: Sighted, seen: Seen, name: str) -> Proposal:
        sensor = self._sensor(seen)
        state = jnp.where(note.disputed, note.state, sensor)
        whole = jnp.asarray(seen.obs.state).at[:, : self._width].set(state)
        off = largest(jnp.abs(sensor - note.state) / self.usual[None]) / self.joint
        return Proposal(
            dataclasses.replace(seen.obs, state=whole),
            jnp.isfinite(state).all(axis=1),
            jnp.where(note.moves, off, jnp.maximum(off, STILL)),
        )

    def _sensor(self, seen: Seen) -> Float[Array, "b s"]:
        return jnp.asarray(seen.obs.state)[:, : self._width]


def _tokens(seen: Seen) -> Float[Array, "b c t"]:
    """ValueError without."""
    if seen.tokens is None:
        raise ValueError("a state is reckoned by sight: give Seen the monitor's `tokens`.")
    return seen.tokens
