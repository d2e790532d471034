"""The least time that SAFE's recipe can take on this machine: its matrix products and nothing else.

The operations that the recipe multiplies and adds, valid steps only, divided by the highest rate at
which this machine multiplies float32 matrices of any size. No activation, loss, optimiser, padding
or memory traffic: no program of this recipe can be below it, whoever wrote it.
"""

from __future__ import annotations

import os
import time

import jax
import jax.numpy as jnp

HIDDEN = 256
SIZES = (256, 512, 1024)


def operations(case: str, dim: int) -> int:
    """Of one step of one episode: forward, into the past (LSTM), and the kernels' gradient."""
    if case == "safe_mlp":
        return 2 * (2 * dim * HIDDEN)
    gates, both = 4 * HIDDEN, dim + HIDDEN
    return 2 * (both * gates + gates * HIDDEN + both * gates)


def highest_rate(seconds: float = 6.0) -> float:
    """Most float32 operations in a CPU second that any square product reached."""
    best = 0.0
    for size in SIZES:
        x = jnp.full((size, size), 1 / size)
        repeats = 10 * (SIZES[-1] // size) ** 3
        chain = jax.jit(lambda x, n=repeats: jax.lax.fori_loop(0, n, lambda _, y: y @ x, x))
        jax.block_until_ready(chain(x))
        end = time.perf_counter() + seconds / len(SIZES)
        while time.perf_counter() < end:
            start = time.process_time()
            jax.block_until_ready(chain(x))
            best = max(best, repeats * 2 * size**3 / (time.process_time() - start))
    return best


def floor(case: str, dim: int, steps: int, epochs: int) -> dict[str, float]:
    """CPU seconds of the products of `epochs` over `steps` valid steps, wall seconds if every core
    did nothing else, and the rate.
    """
    rate = highest_rate()
    cpu = epochs * steps * operations(case, dim) / rate
    return {"fit_cpu_s": cpu, "fit_wall_s": cpu / (os.cpu_count() or 1), "gflop_per_s": rate / 1e9}
