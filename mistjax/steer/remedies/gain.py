"""Picture gain: a camera that turned darker, or another colour, is given its own light back.

A scene's mean light changes little from one look to the next, a light or an exposure that changes
does so at once. The sudden changes of each channel's mean light since the camera was last sound are
added up, and the picture is divided by them before the vision tower sees it. Nothing is invented:
what the sensor has lost (a black picture, clipped light) stays lost, and other faults of a picture
are none of its business: it does not know them, and repairs nothing.

Cost: one more pass of the vision tower where it acts.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.models.observation import Observation
from mistjax.steer.remedies.remedy import Proposal, Seen, stand_in

DARKEST = 1e-3
"""Of full light: a mean below it counts as this much."""
LARGEST = 10.0
"""Gains beyond it, or below its inverse, would show noise."""
WIDE = 2.0
"""Usual changes of light that a sound camera's add up to."""


class Light(NamedTuple):
    """Logarithm of each channel's mean light at the last look, and its sudden changes in sum since
    the note was taken, of every camera."""

    last: Float[Array, "b c 3"]
    jumped: Float[Array, "b c 3"]


@flax.struct.dataclass
class PictureGain:
    """See the module.

    Attributes:
        usual: change of a channel's log mean light between two looks that 99% of those in clean
            episodes stay within, of each camera.
        cameras: names (static).
    """

    usual: Float[Array, " c"]
    cameras: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def blank(self, batch: int) -> Light:
        none = jnp.zeros((batch, len(self.cameras), 3))
        return Light(none, none)

    def note(self, seen: Seen, name: str) -> Light:
        light = log_light(seen.obs, self.cameras)
        return Light(light, jnp.zeros_like(light))

    def advance(self, note: Light, seen: Seen) -> Light:
        light = log_light(seen.obs, self.cameras)
        step = light - note.last
        sudden = jnp.abs(step).max(-1, keepdims=True) > self.usual[None, :, None]
        return Light(light, note.jumped + jnp.where(sudden, step, 0.0))

    def propose(self, note: Light, seen: Seen, name: str) -> Proposal:
        camera = self.cameras.index(name)
        jumped = note.jumped[:, camera]
        gain = jnp.exp(-jumped)
        shown = jnp.asarray(seen.obs.images[name], jnp.float32)
        light = jnp.clip((shown + 1) / 2 * gain[:, None, None], 0, 1)
        size = jnp.abs(jumped).max(axis=1)
        residual = size / (WIDE * self.usual[camera])
        return Proposal(
            stand_in(seen, name, (2 * light - 1).astype(shown.dtype)),
            (residual > 1) & (size < jnp.log(LARGEST)),
            jnp.where(jnp.isnan(residual), jnp.inf, residual),
        )


def log_light(obs: Observation, cameras: tuple[str, ...]) -> Float[Array, "b c 3"]:
    """Logarithm of the mean light of each channel, 0 for white."""
    means = [jnp.asarray(obs.images[name], jnp.float32).mean((1, 2)) for name in cameras]
    return as_log_light(jnp.stack(means, axis=1))


def as_log_light(mean: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """The same of mean values in [-1, 1]."""
    return jnp.log(jnp.maximum((mean + 1) / 2, DARKEST))
