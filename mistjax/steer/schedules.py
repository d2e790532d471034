"""How strongly to steer, and when: over the inferences since the alarm, and over the flow steps.

A schedule is an array, read at a traced index: another schedule of the same length never
recompiles.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

HORIZON = 64


def is_strength(value: Any) -> bool:
    """Whether a value is a number that float32 can hold."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and abs(float(value)) <= float(np.finfo(np.float32).max)


@flax.struct.dataclass
class Schedule:
    """Strength at each inference since the alarm; the last value holds from there on."""

    strengths: Float[Array, " t"]

    @classmethod
    def of(cls, curve: Float[np.ndarray, " t"] | Sequence[float]) -> Schedule:
        """From a curve of any precision; all schedules have one type, or jit would see two.

        Raises:
            ValueError: no strength, or one that is not finite.
        """
        strengths = np.asarray(curve, np.float64)
        if not len(strengths) or not all(is_strength(value) for value in strengths):
            raise ValueError(f"strengths are {strengths}: expected at least one, and all finite.")
        return cls(jnp.asarray(strengths, jnp.float32))

    def at(self, since: Int[Array, "..."] | int) -> Float[Array, "..."]:
        """Strength `since` inferences after the alarm (0 is the alarm's own); 0 before it (-1)."""
        since = jnp.asarray(since)
        held = self.strengths[jnp.clip(since, 0, self.strengths.shape[0] - 1)]
        return jnp.where(since >= 0, held, 0.0)


def constant(strength: float) -> Schedule:
    """The same strength from the alarm on."""
    return Schedule.of(np.full(HORIZON, float(strength)))
