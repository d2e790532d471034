"""Bounded fusion of a steered chunk with the original one.

Promises, whatever the steered chunk and the weight are, for an original that is finite:

- every value but the gripper's is within `cap` of the original one;
- no value leaves the action bounds, or leaves them further than the original one did;
- a steered value that is not finite leaves the original;
- the gripper's command is never a blend, so that no cap above 0 bounds it: it is the steered side's
  as a whole where that has more than half of the weight, and then moves at most once a chunk. It is
  else the original's;
- a weight of 0 or a cap of 0 gives the original bit for bit, the gripper included.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from mistjax.policies.protocol import PolicySpec


@flax.struct.dataclass
class FusionLimits:
    """Limits in model units, one entry per action dimension of the model.

    Attributes:
        cap: largest |fused - original|.
        gripper: True for the gripper dimension, which is switched, never blended.
        low, high: the action bounds; infinite where they follow the state, as for actions relative
            to it, which `Policy.finish` bounds.
    """

    cap: Float[Array, " a"]
    gripper: Bool[Array, " a"]
    low: Float[Array, " a"] | float = -jnp.inf
    high: Float[Array, " a"] | float = jnp.inf

    @classmethod
    def of(cls, spec: PolicySpec, cap: float, width: int) -> FusionLimits:
        """The same share `cap` of every dimension's range; padded dimensions may not move.

        Args:
            spec: the policy.
            cap: share of the range between the bounds, in [0, 1].
            width: action dimensions of the model, padding included.

        Raises:
            ValueError: `cap` is outside [0, 1], or the model has fewer dimensions than the action.
        """
        if not 0 <= cap <= 1:
            raise ValueError(f"cap is {cap}: expected a share of the action range in [0, 1].")
        if width < spec.action_dim:
            raise ValueError(
                f"width is {width}: expected at least the {spec.action_dim} dimensions of "
                f"{spec.name!r}'s actions."
            )
        bounds = np.array([spec.action_low, spec.action_high], np.float64)
        scale = np.array(spec.action_scale, np.float64)
        offset = np.array(spec.action_offset or (None,) * spec.action_dim, np.float64)
        moves = scale != 0  # what the model says of the others changes no action
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = cap * (bounds[1] - bounds[0]) / np.abs(scale)
            ends = np.sort((bounds - offset) / scale, axis=0)
        low, high = np.where(moves & ~np.isnan(offset), ends, [[-np.inf], [np.inf]])
        padding = (0, width - spec.action_dim)
        values = (np.where(moves, reach, 0.0), low, high)
        reach, low, high = (np.pad(v, padding).astype(np.float32) for v in values)
        gripper = np.zeros(width, bool)
        if spec.gripper_index is not None:
            gripper[spec.gripper_index] = True
        return cls(*(jnp.asarray(array) for array in (reach, gripper, low, high)))


def fuse(
    original: Float[Array, "b h a"],
    steered: Float[Array, "b h a"],
    weight: Float[Array, " b"],
    limits: FusionLimits,
) -> Float[Array, "b h a"]:
    """original + weight * (steered - original) within the limits; the gripper as the module says.

    Args:
        original: the bare policy's chunk.
        steered: the chunk under edits.
        weight: 0 keeps the original, 1 takes the steered chunk; one of each batch element.
        limits: caps, bounds and the gripper dimension.
    """
    weight = jnp.where(jnp.isfinite(weight), weight, 0.0)[:, None, None]
    step = weight * (steered - original)
    cap, low, high = (_wide(x) for x in (limits.cap, limits.low, limits.high))
    step = jnp.clip(jnp.where(jnp.isfinite(step), step, 0.0), -cap, cap)
    lowest, highest = jnp.minimum(low, original), jnp.maximum(high, original)
    blended = jnp.where(step != 0, jnp.clip(original + step, lowest, highest), original)
    command = jnp.where(jnp.isfinite(steered), steered, original)
    command = jnp.clip(command, low, high)
    taken = (weight > 0.5) & (cap > 0)
    switched = jnp.where(taken, latch_gripper(command, _middle(limits)), original)
    return jnp.where(_wide(limits.gripper), switched, blended)


def _wide(value: ArrayLike) -> Array:
    """A number, or one of each dimension as [1,1,A]."""
    array = jnp.asarray(value)
    return array[(None,) * (3 - array.ndim)] if array.ndim else array


def _middle(limits: FusionLimits) -> Float[Array, "..."]:
    """Between open and closed: the middle of the bounds, or 0 where they are not known."""
    middle = (jnp.asarray(limits.low) + jnp.asarray(limits.high)) / 2
    return jnp.where(jnp.isfinite(middle), middle, 0.0)


def latch_gripper(
    command: Float[Array, "b h a"], middle: Float[Array, "..."] | float = 0.0
) -> Float[Array, "b h a"]:
    """The gripper command with at most one switch in the chunk.

    It is open or closed by the side of `middle` that it is on: after the first change of side the
    new value holds to the end of the chunk.
    """
    side = command >= _wide(middle)
    switched = jnp.cumsum(side != side[:, :1], axis=1) > 0
    first = jnp.argmax(switched, axis=1)[:, None]
    return jnp.where(switched, jnp.take_along_axis(command, first, axis=1), command)
