"""A policy that also says how strongly its velocity field reacts along its own direction.

Source: SafeFlow (directional sensitivity of the velocity field), in the form given below. Cost: one
forward-mode product through one flow step, about two of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.hooks.edits import Edit
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import Reporting, flow_of


def directional_sensitivity(
    velocity: Callable[[Array], Array], x: Float[Array, "b *s"], direction: Float[Array, "b *s"]
) -> Float[Array, " b"]:
    """|J(x) u| with u the unit `direction` of each sample: one forward-mode product, about two
    calls.

    Args:
        velocity: the velocity field at a fixed time and observation, mapping samples independently.
        x: noisy action chunks.
        direction: e.g. the velocity itself, or the step from the last chunk to this one.
    """
    axes = tuple(range(1, x.ndim))
    norm = jnp.sqrt(jnp.sum(direction**2, axis=axes, keepdims=True))
    _, change = jax.jvp(velocity, (x,), (direction / jnp.maximum(norm, 1e-12),))
    return jnp.sqrt(jnp.sum(change**2, axis=axes))


@dataclasses.dataclass(frozen=True)
class Sensitive(Reporting):
    """Adds `aux["sensitivity"]` [B]: at the last flow step, along the velocity there.

    Attributes:
        policy: a flow policy, whose samples hold the `velocity` of every step; ValueError for any
            other.
    """

    policy: Policy

    adds: ClassVar[str] = "sensitivity"

    def __post_init__(self) -> None:
        flow_of(self.policy)  # says what is wrong

    def report(
        self,
        first: Sample,
        obs: Observation,
        key: Array,
        state: Any,
        edits: Sequence[Edit],
        prefix: Any,
    ) -> Array:
        """See `Reporting.report`."""
        flow = flow_of(self.policy)
        steps, last = first.aux["velocity"].shape[1], first.aux["velocity"][:, -1]
        before = first.actions + last / steps

        def velocity(noisy: Array) -> Array:
            return flow.velocity(obs, noisy, prefix, step=steps - 1, edits=edits)

        return directional_sensitivity(velocity, before, last)
