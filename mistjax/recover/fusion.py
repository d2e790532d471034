"""Bounded fusion of a steered chunk with the original one.

Promises, whatever the steered chunk is: every fused value is within `cap` of the original one and
inside the bounds; a non-finite steered value leaves the original; the gripper moves at most once a
chunk.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mistjax.policies.protocol import PolicySpec


@flax.struct.dataclass
class FusionLimits:
    """Limits in model units, one entry per action dimension of the model.

    Attributes:
        cap: largest |fused - original|.
        gripper: True for the gripper dimension, which is switched, never blended.
    """

    cap: Float[Array, " a"]
    gripper: Bool[Array, " a"]

    @classmethod
    def of(cls, spec: PolicySpec, cap: float, width: int) -> FusionLimits:
        """The same share `cap` of every dimension's range; padded dimensions may not move.

        Args:
            spec: the policy.
            cap: share of the range between the bounds, in [0, 1].
            width: action dimensions of the model, padding included.

        Raises:
            ValueError: `cap` is outside [0, 1].
        """
        if not 0 <= cap <= 1:
            raise ValueError(f"cap is {cap}: expected a share of the action range in [0, 1].")
        low, high, scale = (
            jnp.asarray(v) for v in (spec.action_low, spec.action_high, spec.action_scale)
        )
        caps = jnp.zeros(width).at[: spec.action_dim].set(cap * (high - low) / scale)
        gripper = jnp.zeros(width, bool)
        if spec.gripper_index is not None:
            gripper = gripper.at[spec.gripper_index].set(True)
        return cls(caps, gripper)


def fuse(
    original: Float[Array, "b h a"],
    steered: Float[Array, "b h a"],
    weight: Float[Array, " b"],
    limits: FusionLimits,
) -> Float[Array, "b h a"]:
    """original + weight * (steered - original), capped; the gripper as `latch_gripper`.

    Args:
        original: the bare policy's chunk.
        steered: the chunk under edits.
        weight: 0 keeps the original, 1 takes the steered chunk; per row.
        limits: caps and the gripper dimension.
    """
    delta = jnp.where(jnp.isfinite(steered), steered - original, 0.0)
    step = jnp.clip(weight[:, None, None] * delta, -limits.cap, limits.cap)
    blended = jnp.where(step != 0, original + step, original)
    latched = latch_gripper(original, original + delta, weight)
    return jnp.where(limits.gripper, latched, blended)


def latch_gripper(
    original: Float[Array, "b h a"], steered: Float[Array, "b h a"], weight: Float[Array, " b"]
) -> Float[Array, "b h a"]:
    """The gripper command of the side with more weight, with at most one switch in the chunk.

    A command is open or closed by its sign in model units around the chunk's first value: after the
    first change of sign the new value holds to the end of the chunk.
    """
    chosen = jnp.where(weight[:, None, None] > 0.5, steered, original)
    switched = jnp.cumsum(jnp.sign(chosen) != jnp.sign(chosen[:, :1]), axis=1) > 0
    first = jnp.argmax(switched, axis=1)[:, None]
    after = jnp.take_along_axis(chosen, first, axis=1)
    return jnp.where(switched, after, chosen)
