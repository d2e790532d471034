"""Arms that take turns: how benchmarks here compare programs on one machine.

The arms are called in a new order each turn, so that other load hits all of them alike. A turn is a
burst of calls after some that are not timed: a short program that was not the last to run is slower
for its cold caches. A ratio is the median over the turns of one arm's time to the baseline's in the
same turn, its interval a 95% bootstrap over turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

Ratio = tuple[float, float, float]
"""Median, and both ends of its 95% interval."""


def take_turns(
    calls: Mapping[str, Callable[[], Any]],
    *,
    turns: int,
    burst: int,
    warm: int,
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "turns 2"]]:
    """Seconds of one call of each arm at each turn, by the wall's clock and by the process's.

    Args:
        calls: arm -> what to time; results are waited for.
        turns: timed bursts of each arm.
        burst: calls of each.
        warm: calls before each, not timed.
        rng: for the order of the arms.
    """
    taken = {arm: np.empty((turns, 2)) for arm in calls}
    for turn in range(turns):
        for arm in rng.permutation(list(calls)):
            _call(calls[arm], warm)
            start = np.array([time.perf_counter(), time.process_time()])
            _call(calls[arm], burst)
            taken[arm][turn] = ([time.perf_counter(), time.process_time()] - start) / burst
    return taken


def ratio(
    seconds: Float[np.ndarray, " turns"],
    baseline: Float[np.ndarray, " turns"],
    rng: np.random.Generator,
) -> Ratio:
    """How many times the baseline's time an arm takes."""
    ratios = seconds / baseline
    drawn = rng.integers(0, len(ratios), (1000, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def _call(program: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        jax.block_until_ready(program())
