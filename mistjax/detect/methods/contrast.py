"""`fit_contrast_probe`: a SAFE-MLP that has also seen perturbed episodes, near-duplicates left out.

A probe trained on the ordinary episodes alone meets a changed scene or instruction for the first
time where it has to work. A contrast set is the same policy run again under perturbations, at
little cost; give its runs after the ordinary ones, to `mistjax train-detector` and to `mistjax
calibrate`. What is promised for the ordinary episodes then no longer is: the threshold is that of
the mixture.

Source: SAFECAST (arXiv 2608.04246), read in its abstract and in summaries, not in full: the same
probe as SAFE's, contrast sets in training and in calibration, and candidates rejected whose
distance by dynamic time warping to one that is kept is below a limit. Ours: the distance of
z-scored features at 16 evenly spaced steps, the mean along the path, the limit as a share of the
median distance between episodes, and that ordinary episodes are candidates as well, in the order
given. Cost: n^2 / 2 warpings of 16 by 16 steps, some seconds for 700 episodes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mistjax.detect.data import Episodes

STEPS = 16


def warped_distance(
    one: Float[np.ndarray, "t d"], others: Float[np.ndarray, "n t d"]
) -> Float[np.ndarray, " n"]:
    """Dynamic time warping of one series with several: the least sum of distances along a path from
    both starts to both ends, over the steps of a series.
    """
    product = one @ others.swapaxes(1, 2)
    squared = (one**2).sum(-1)[:, None] + (others**2).sum(-1)[:, None] - 2 * product
    cost = np.sqrt(np.maximum(squared, 0))
    n, t, _ = cost.shape
    best = np.full((n, t + 1, t + 1), np.inf)
    best[:, 0, 0] = 0
    for i in range(1, t + 1):
        above = np.minimum(best[:, i - 1, 1:], best[:, i - 1, :-1])
        for j in range(1, t + 1):
            best[:, i, j] = cost[:, i - 1, j - 1] + np.minimum(above[:, j - 1], best[:, i, j - 1])
    return best[:, t, t] / t


def distinct(episodes: Episodes, limit: float) -> Int[np.ndarray, " k"]:
    """Which episodes are left without near-duplicates: in order, one that is nearer than `limit`
    times the median distance between episodes to one that is kept is left out.

    Args:
        episodes: z-scored features.
        limit: 0 keeps all.

    Raises:
        ValueError: a negative limit.
    """
    if limit < 0:
        raise ValueError(f"limit is {limit}: expected a share of the median distance, at least 0.")
    lengths = np.asarray(episodes.lengths)
    at = np.round(np.linspace(0, 1, STEPS) * (lengths[:, None] - 1)).astype(int)
    series = np.take_along_axis(np.asarray(episodes.features, np.float32), at[..., None], axis=1)
    some = np.random.default_rng(0).permutation(len(series))[:32]
    apart = [warped_distance(series[i], series[some[:k]]) for k, i in enumerate(some)]
    median = np.median(np.concatenate(apart)) if len(some) > 1 else 0.0
    kept = [0]
    for i in range(1, len(series)):
        if warped_distance(series[i], series[kept]).min() >= limit * median:
            kept.append(i)
    return np.array(kept)


def fit_contrast_probe(episodes: Episodes, *, limit: float = 0.5, fit: Any, **config: Any) -> Any:
    """A probe of the distinct episodes.

    Args:
        episodes: ordinary ones first, then the contrast set.
        limit: see `distinct`.
        fit: of the probe; it takes the episodes and `config`.
        **config: its options.
    """
    return fit(episodes.take(distinct(episodes, limit)), **config)
