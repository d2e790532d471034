"""Conformal bands and per-class limits as SAFE evaluates them; `conformal.calibrate` is the
monitor's threshold.

Source: Diquigiovanni et al. (arXiv 2102.06746); SAFE (arXiv 2506.09937), section 4.3 and its
released evaluation.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from mistjax.detect.calibration.conformal import (
    Band,
    conformal_quantile,
    finite_sample_rank,
    modulation,
)


def functional_band(
    reference: Float[np.ndarray, "n t"],
    calibration: Float[np.ndarray, "m t"],
    alpha: float,
    *,
    band: Band = "tfunc",
    side: Literal["upper", "lower", "both"] = "upper",
    as_released: bool = False,
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """Functional conformal band (lower, upper) of equally long curves; an open side is infinite.

    Args:
        reference: curves for the centre and the modulation.
        calibration: curves for the width.
        alpha: miscoverage.
        band: modulation.
        side: one-sided or two-sided.
        as_released: one-sided widths by linear interpolation, as SAFE and FAIL-Detect release them.
            That is below the finite-sample rank, so the promise does not hold.
    """
    centre, h = reference.mean(0), modulation(reference, alpha, band)
    scaled = (calibration - centre) / h
    values = {"upper": scaled, "lower": -scaled, "both": np.abs(scaled)}[side].max(1)
    exact = side == "both" or not as_released
    width = conformal_quantile(values, alpha) if exact else float(np.quantile(values, 1 - alpha))
    infinite = np.full_like(centre, np.inf)
    return (
        -infinite if side == "upper" else centre - width * h,
        infinite if side == "lower" else centre + width * h,
    )


def split_thresholds(
    scores: Float[np.ndarray, " n"],
    success: Bool[np.ndarray, " n"],
    alpha: float,
    *,
    as_released: bool = False,
) -> tuple[float, float]:
    """Label-conditional split conformal on one score per episode in [0, 1].

    Args:
        scores: one score per episode.
        success: outcomes.
        alpha: miscoverage per class.
        as_released: when the rank exceeds a class's size, take its largest value instead of +inf.

    Returns:
        Limits of the nonconformity of a success (the score) and of a failure (1 - the score). An
        episode may be a success if score <= first, and a failure if 1 - score <= second.
    """

    def limit(values: np.ndarray) -> float:
        if as_released and finite_sample_rank(len(values), alpha) > len(values):
            return float(values.max())
        return conformal_quantile(values, alpha)

    return limit(scores[success]), limit(1 - scores[~success])
