"""Rates, intervals and paired tests: every number that a table prints comes through here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Rate:
    """k out of n, with the Wilson 95% interval. n = 0 gives NaN and the interval (0, 1)."""

    k: int
    n: int

    @property
    def value(self) -> float:
        return self.k / self.n if self.n else float("nan")

    @property
    def interval(self) -> Interval:
        return wilson(self.k, self.n)

    def __str__(self) -> str:
        if not self.n:
            return "–"
        low, high = self.interval
        return f"{self.value:.0%} [{low:.0%}, {high:.0%}] ({self.k}/{self.n})"


def bootstrap(
    metric: Callable[[Int[np.ndarray, " n"]], float],
    n: int,
    *,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `metric(index)` over episodes resampled with replacement; draws that
    give NaN are left out.
    """
    rng = np.random.default_rng(seed)
    values = np.array([metric(rng.integers(0, n, n)) for _ in range(draws)])
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def pearson(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Pearson's r; NaN where either is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if x.std() * y.std() > 0 else float("nan")


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion; (0, 1) for n = 0."""
    if n == 0:
        return Interval(0.0, 1.0)
    ci = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(float(ci.low), float(ci.high))


def mcnemar(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " m"]) -> float:
    """Exact two-sided p-value of the hypothesis that paired outcomes `a` and `b` (same seeds) have
    the same success rate.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape:
        raise ValueError(f"McNemar's test needs paired outcomes; got {a.shape} and {b.shape}.")
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for a family of tests: each p-value times the number of hypotheses not yet
    rejected, no smaller than the one before it, at most 1.
    """
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
