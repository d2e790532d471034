"""Thresholds with a promise: P(any alarm in a successful episode) <= alpha, if episodes are
exchangeable.

The nonconformity of an episode is its largest standardised excess over a centre curve, max_t (s_t -
mu_t) / h_t, over its valid steps. mu and h come from reference episodes only, so the k-th smallest
of the calibration values, with k = ceil((n + 1)(1 - alpha)), bounds a new successful episode of any
length with probability >= 1 - alpha. With k > n no finite threshold keeps the promise: it is +inf,
and a warning says so. (General conformal libraries cover regression and classification sets, not
bands over time; the rank is one line.) Source: Diquigiovanni et al., "The importance of being a
band" (arXiv 2102.06746); SAFE (arXiv 2506.09937), section 4.3.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import flax.struct as struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from scipy import stats

from mistjax.detect.detector import Leaf

Band = Literal["constant", "stdev", "tfunc"]


class CalibrationWarning(UserWarning):
    """The calibration set cannot support what was asked of it."""


def finite_sample_rank(n: int, alpha: float, confidence: float | None = None) -> int:
    """Which of n ordered values, 1-based; larger than n means that n episodes are too few.

    Without a confidence it is ceil((n + 1)(1 - alpha)): the bound then holds on average over
    calibration sets, and about half of them exceed it. With one, it is the smallest k for which
    that share of calibration sets keep the bound: P(Beta(k, n + 1 - k) >= 1 - alpha).

    Raises:
        ValueError: alpha or confidence outside (0, 1).
    """
    for name, value in (
        ("alpha", alpha),
        ("confidence", 0.5 if confidence is None else confidence),
    ):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie in (0, 1); got {value}.")
    if confidence is None:
        return math.ceil(round((n + 1) * (1 - alpha), 9))  # 0.1 * 10 must not round up to rank 10
    ranks = np.arange(1, n + 1)
    kept = stats.beta.sf(1 - alpha, ranks, n + 1 - ranks) >= confidence
    return int(ranks[kept][0]) if kept.any() else n + 1


def least_episodes(alpha: float, confidence: float | None = None) -> int:
    """How many calibration episodes a finite threshold needs."""
    if confidence is None:
        return math.ceil(round(1 / alpha - 1, 9))
    return math.ceil(math.log(1 - confidence) / math.log(1 - alpha))


def conformal_quantile(
    values: Float[np.ndarray, " n"], alpha: float, confidence: float | None = None
) -> float:
    """The finite-sample rank's order statistic, +inf (with a CalibrationWarning) when n is too
    small.
    """
    k, n = finite_sample_rank(len(values), alpha, confidence), len(values)
    if k > n:
        least = least_episodes(alpha, confidence)
        warnings.warn(
            f"{n} calibration episodes cannot promise alpha = {alpha}: rank {k} > {n}, so the "
            "threshold is +inf and "
            f"never alarms on a finite score. Use at least {least} calibration episodes or a "
            "larger alpha.",
            CalibrationWarning,
            stacklevel=2,
        )
        return math.inf
    return float(np.sort(values)[k - 1])


class CoverageLaw(NamedTuple):
    """Distribution, over calibration sets, of the coverage that a calibrated threshold really
    has.
    """

    mean: float
    low: float
    high: float


def coverage_law(
    n: int, alpha: float, level: float = 0.9, confidence: float | None = None
) -> CoverageLaw:
    """Beta(k, n + 1 - k) of the realised coverage for continuous scores: mean and central interval.

    Source: Vovk, "Conditional validity of inductive conformal predictors" (arXiv 1209.2673),
    section 3.
    """
    k = finite_sample_rank(n, alpha, confidence)
    if k > n:
        return CoverageLaw(1.0, 1.0, 1.0)
    low, high = stats.beta.interval(level, k, n + 1 - k)
    return CoverageLaw(k / (n + 1), float(low), float(high))


@struct.dataclass
class Threshold:
    """Upper limit of the score at each step.

    Attributes:
        upper: [t_max]; later steps use its last entry.
        alpha: promised bound on the chance of any alarm in a successful episode.
        n_calibration: successful episodes that set the rank.
        rank: order statistic used; larger than n_calibration means `upper` is +inf.
        band: shape over time.
        confidence: share of calibration sets that keep the bound; None: it holds on average over
            them.
    """

    upper: Leaf
    alpha: float = struct.field(pytree_node=False)
    n_calibration: int = struct.field(pytree_node=False)
    rank: int = struct.field(pytree_node=False)
    band: Band = struct.field(pytree_node=False, default="constant")
    confidence: float | None = struct.field(pytree_node=False, default=None)

    def at(self, step: Int[Array, "*b"] | int) -> Float[Array, "*b"]:
        """The limit at `step`, counted from 0."""
        return jnp.asarray(self.upper)[jnp.minimum(step, self.upper.shape[0] - 1)]

    def alarm(self, step: Int[Array, "*b"] | int, score: Float[Array, "*b"]) -> Bool[Array, "*b"]:
        """True above the limit, and for NaN or Inf whatever the limit."""
        return ~(jnp.isfinite(score) & (score <= self.at(step)))

    def alarms(self, scores: Float[Array, "n t"], mask: Bool[Array, "n t"]) -> Bool[Array, "n t"]:
        """Alarms of whole episodes on their valid steps."""
        steps = jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape)
        return self.alarm(steps, scores) & mask

    def describe(self, kind: str = "successful") -> str:
        """One sentence for reports; `kind` says what was calibrated on, e.g. "clean" episodes."""
        if self.rank > self.n_calibration:
            return (
                f"Threshold is +inf: {self.n_calibration} {kind} calibration episodes are too "
                "few to promise "
                f"alpha = {self.alpha}; only NaN and Inf scores alarm."
            )
        law = coverage_law(self.n_calibration, self.alpha, confidence=self.confidence)
        over = "on average over" if self.confidence is None else f"for {self.confidence:.0%} of"
        return (
            f"At most {self.alpha:.1%} of {kind} episodes raise an alarm {over} "
            "calibration sets "
            f"(n = {self.n_calibration}, rank {self.rank}, {self.band} band); for 90% of "
            "calibration sets the "
            f"rate lies between {1 - law.high:.1%} and {1 - law.low:.1%}."
        )


def extend(scores: Shaped[Any, "n t"], mask: Shaped[Any, "n t"]) -> Float[np.ndarray, "n t"]:
    """Repeat each episode's last valid score to the end of the padding."""
    scores, mask = np.asarray(scores, np.float64), np.asarray(mask, bool)
    if not mask.any(1).all():
        raise ValueError(
            f"{(~mask.any(1)).sum()} episodes have no valid step; drop them before calibrating."
        )
    last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
    return scores[
        np.arange(len(scores))[:, None], np.minimum(np.arange(scores.shape[1]), last[:, None])
    ]


def modulation(
    curves: Float[np.ndarray, "n t"], alpha: float, band: Band
) -> Float[np.ndarray, " t"]:
    """Width of a band over time, up to scale.

    constant: 1/t everywhere. stdev: standard deviation. tfunc: largest deviation from the mean
    among the curves whose own largest deviation is within the ceil((n + 1)(1 - alpha))-th smallest
    (all curves if that rank exceeds n).
    """
    n, t = curves.shape
    if band == "constant":
        return np.full(t, 1 / t)
    if band == "stdev":
        return curves.std(0, ddof=1) + 1e-8
    deviation = np.abs(curves - curves.mean(0))
    k = finite_sample_rank(n, alpha)
    peak = deviation.max(1)
    kept = peak <= (np.sort(peak)[k - 1] if k <= n else np.inf)
    return deviation[kept].max(0) + 1e-8


def reference_rows(
    n: int, band: Band, share: float = 0.3, seed: int = 0
) -> tuple[Int[np.ndarray, " r"], Int[np.ndarray, " c"]]:
    """Which of n successes give a band its shape, and which set its rank."""
    if band == "constant":
        return np.arange(0), np.arange(n)
    order = np.random.default_rng(seed).permutation(n)
    first = max(int(share * n), 2)
    return order[:first], order[first:]


def calibrate(
    scores: Shaped[Any, "n t"],
    mask: Shaped[Any, "n t"],
    success: Shaped[Any, " n"],
    alpha: float,
    *,
    band: Band = "stdev",
    reference: tuple[Any, Any] | None = None,
    reference_share: float = 0.3,
    seed: int = 0,
    confidence: float | None = None,
) -> Threshold:
    """The monitor's threshold, from the successful episodes among those given.

    Args:
        scores: detector scores of calibration episodes; they must not have trained the detector.
        mask: valid steps.
        success: outcomes; failures are ignored.
        alpha: bound on the chance of any alarm in a successful episode.
        band: "constant" for one number, "stdev" or "tfunc" to vary over time.
        reference: (scores, mask) of other successful episodes for the shape of the band, e.g.
            training successes. Then all calibration episodes set the rank. Without it,
            `reference_share` of them give the shape.
        reference_share: see above; not used by "constant".
        seed: of that division.
        confidence: share of calibration sets that are to keep the bound, see `finite_sample_rank`.

    Raises:
        ValueError: no successful episode, fewer than two for the shape of a time-varying band, or
            non-finite scores.

    Warns:
        CalibrationWarning: too few episodes for alpha; the threshold is +inf.
    """
    good = np.asarray(success, bool)
    mask = np.asarray(mask, bool)[good]
    scores = np.where(mask, np.asarray(scores, np.float64)[good], 0.0)
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(
            f"{len(scores)} successful calibration episodes, {(~np.isfinite(scores)).sum()} "
            "non-finite scores; "
            "calibration needs at least one success and finite scores on valid steps."
        )
    t = scores.shape[1]
    if band == "constant":
        centre, h = np.zeros(t), np.ones(t)
    else:
        if reference is None:
            first, rest = reference_rows(len(scores), band, reference_share, seed)
            reference, scores, mask = (scores[first], mask[first]), scores[rest], mask[rest]
        curves = extend(*reference)
        if len(curves) < 2 or not len(scores):
            raise ValueError(
                f"{len(curves)} reference and {len(scores)} calibration successes; a time-varying "
                "band needs two "
                'reference episodes and one more. Collect more or use band="constant".'
            )
        curves = np.pad(curves, ((0, 0), (0, max(t - curves.shape[1], 0))), mode="edge")[:, :t]
        centre, h = curves.mean(0), modulation(curves, alpha, band)
        # a nearly constant start must not set the width of the whole band
        h = np.maximum(h, 0.1 * h.mean())
    values = np.where(mask, (scores - centre) / h, -np.inf).max(1)
    width = conformal_quantile(values, alpha, confidence)
    upper = centre + width * h if math.isfinite(width) else np.full(t, np.inf)
    # float32 rounding must not push a calibration score above its own limit
    upper = np.nextafter(upper.astype(np.float32), np.float32(np.inf))
    n = len(values)
    rank = finite_sample_rank(n, alpha, confidence)
    return Threshold(jnp.asarray(upper), alpha, n, rank, band, confidence)


def calibrate_strata(
    scores: Shaped[Any, "n t"],
    mask: Shaped[Any, "n t"],
    success: Shaped[Any, " n"],
    strata: Shaped[Any, " n"],
    alpha: float,
    **options: Any,
) -> dict[Any, Threshold]:
    """One threshold per stratum (suite, task): the promise then holds within each, not only on
    average.
    """
    labels = np.asarray(strata)
    arrays = [np.asarray(x) for x in (scores, mask, success)]

    def one(rows: np.ndarray) -> Threshold:
        part = [x[rows] for x in arrays]
        return calibrate(part[0], part[1], part[2], alpha, **options)

    return {label.item(): one(labels == label) for label in np.unique(labels)}


def excess(
    threshold: Threshold, scores: Shaped[Any, "n t"], mask: Shaped[Any, "n t"]
) -> Float[np.ndarray, " n"]:
    """How far each episode's score rises above the limit at most; below 0 without an alarm."""
    scores = np.asarray(scores, np.float64)
    above = scores - np.asarray(threshold.at(jnp.arange(scores.shape[1])), np.float64)
    return np.where(np.asarray(mask, bool), above, -np.inf).max(1)
