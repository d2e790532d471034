"""How per-step evidence becomes a score: as it is, summed so far, or averaged so far.

Source: SAFE (arXiv 2506.09937), section 4.2, and its released options `cumsum` and `rmean`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Accumulate: TypeAlias = Literal["none", "sum", "mean"]
Running: TypeAlias = dict[str, Array]


def init_running(batch: int) -> Running:
    """State of a running sum: total [B] and number of steps [B]."""
    return {"total": jnp.zeros(batch, jnp.float32), "steps": jnp.zeros(batch, jnp.float32)}


def accumulate_step(
    mode: Accumulate, running: Running, value: Float[Array, " b"]
) -> tuple[Running, Float[Array, " b"]]:
    """Add one step's evidence; returns the new state and the accumulated score."""
    total, steps = running["total"] + value, running["steps"] + 1
    score = {"none": value, "sum": total, "mean": total / steps}[mode]
    return {"total": total, "steps": steps}, score


def accumulate_sequence(
    mode: Accumulate, values: Float[Array, "b t"], *, stop_gradient: bool = False
) -> Float[Array, "b t"]:
    """Accumulate whole sequences.

    Args:
        mode: none, sum or mean.
        values: evidence per step.
        stop_gradient: treat the sum of earlier steps as a constant, so each step only learns from
            itself.
    """
    if mode == "none":
        return values
    total = jnp.cumsum(values, axis=1)
    if stop_gradient:
        total = jax.lax.stop_gradient(total - values) + values
    return (
        total
        if mode == "sum"
        else total / jnp.arange(1, values.shape[1] + 1, dtype=values.dtype)[None]
    )
