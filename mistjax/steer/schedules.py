"""How strongly to steer, and when: over the inferences since the alarm, and over the flow steps.

A schedule is an array, read at a traced index: another schedule of the same length never
recompiles.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

HORIZON = 64


@flax.struct.dataclass
class Schedule:
    """Strength at each inference since the alarm; the last value holds from there on."""

    strengths: Float[Array, " t"]

    @classmethod
    def of(cls, curve: Float[Array, " t"]) -> Schedule:
        """From a curve of any precision; all schedules have one type, or jit would see two."""
        return cls(jnp.asarray(curve, jnp.float32))

    def at(self, since: Int[Array, "..."] | int) -> Float[Array, "..."]:
        """Strength `since` inferences after the alarm (0 is the alarm's own); 0 before it (-1)."""
        since = jnp.asarray(since)
        held = self.strengths[jnp.clip(since, 0, self.strengths.shape[0] - 1)]
        return jnp.where(since >= 0, held, 0.0)


def constant(strength: float, *, horizon: int = HORIZON) -> Schedule:
    """The same strength from the alarm on."""
    return Schedule.of(jnp.full(horizon, float(strength)))


def ramp(strength: float, over: int, *, horizon: int = HORIZON) -> Schedule:
    """Rises linearly and reaches the strength at the `over`-th inference, then holds."""
    _check_fits("over", over, horizon)
    return Schedule.of(strength * jnp.minimum((jnp.arange(horizon) + 1) / over, 1.0))


def decay(strength: float, half_life: float, *, horizon: int = HORIZON) -> Schedule:
    """Halves every `half_life` inferences, and is 0 from the horizon on."""
    if half_life <= 0:
        raise ValueError(f"half_life is {half_life}: expected inferences, more than 0.")
    curve = strength * 0.5 ** (jnp.arange(horizon) / half_life)
    return Schedule.of(curve.at[-1].set(0.0))


def burst(strength: float, inferences: int, *, horizon: int = HORIZON) -> Schedule:
    """Full strength for so many inferences, then none."""
    _check_fits("inferences", inferences, horizon - 1)
    return Schedule.of(jnp.where(jnp.arange(horizon) < inferences, float(strength), 0.0))


def _check_fits(name: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ValueError(f"{name} is {count}: expected 1 to {most}, or pass a larger horizon.")


def flow_steps(num_steps: int, start: int = 0, stop: int | None = None) -> Float[Array, " s"]:
    """`Edit.step_weights` that steer only flow steps start to stop - 1 (step 0 is pure noise).

    Raises:
        ValueError: no such steps.
    """
    stop = num_steps if stop is None else stop
    if not 0 <= start < stop <= num_steps:
        raise ValueError(
            f"flow steps {start} to {stop}: expected 0 <= start < stop <= {num_steps}."
        )
    steps = jnp.arange(num_steps)
    return ((steps >= start) & (steps < stop)).astype(jnp.float32)
