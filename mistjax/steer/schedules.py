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


def constant(strength: float, *, horizon: int = HORIZON) -> Schedule:
    """The same strength from the alarm on."""
    _check_fits("horizon", horizon, horizon)
    return Schedule.of(np.full(horizon, float(strength)))


def ramp(strength: float, over: int, *, horizon: int = HORIZON) -> Schedule:
    """Rises linearly and reaches the strength at the `over`-th inference, then holds."""
    _check_fits("over", over, horizon)
    return Schedule.of(strength * np.minimum((np.arange(horizon) + 1) / over, 1.0))


def decay(strength: float, half_life: float, *, horizon: int = HORIZON) -> Schedule:
    """Halves every `half_life` inferences, and is 0 from the horizon on."""
    if not half_life > 0:
        raise ValueError(f"half_life is {half_life}: expected inferences, more than 0.")
    _check_fits("horizon", horizon, horizon)
    curve = strength * 0.5 ** (np.arange(horizon) / half_life)
    curve[-1] = 0.0
    return Schedule.of(curve)


def burst(strength: float, inferences: int, *, horizon: int = HORIZON) -> Schedule:
    """Full strength for this many inferences, then none."""
    _check_fits("inferences", inferences, horizon - 1)
    return Schedule.of(np.where(np.arange(horizon) < inferences, float(strength), 0.0))


def _check_fits(name: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ValueError(
            f"{name} is {count}: expected 1 to {max(most, 1)}, or pass a larger horizon."
        )
