"""FIPER's alarm: both window-summed scores above their thresholds.

The thresholds as released are here for comparison; `conformal.calibrate` on the combined score has
a guarantee. Source: FIPER (Römer et al., NeurIPS 2025).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from mistjax.detect.data import Episodes
from mistjax.detect.detector import score_episodes
from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.combinators import Agreement, Windowed
from mistjax.detect.methods.fiper.fiper import fit_action_chunk_entropy, fit_observation_novelty

ThresholdStyle = Literal["constant", "quantile", "band"]


def released_threshold(
    scores: Shaped[Any, "n t"], mask: Shaped[Any, "n t"], quantile: float, style: ThresholdStyle
) -> Float[np.ndarray, " k"]:
    """FIPER's thresholds from successful calibration episodes; none has a finite-sample guarantee.

    Args:
        scores: windowed scores.
        mask: valid steps.
        quantile: of episode maxima ("constant"), of the scores alive at each step ("quantile"), or
            of the largest standardised deviations above the mean ("band"; the release takes those
            below it, although it is an upper band).
        style: which.

    Returns:
        [1] for "constant", else one value per step of the longest episode.
    """
    scores, mask = np.asarray(scores, np.float64), np.asarray(mask, bool)
    alive = np.where(mask, scores, np.nan)[:, : int(mask.sum(1).max())]
    if style == "constant":
        return np.array([np.quantile(np.nanmax(alive, axis=1), quantile)])
    if style == "quantile":
        return np.nanquantile(alive, quantile, axis=0)
    centre, width, rest = band_shape(alive, quantile)
    excess = (rest - centre) / width
    return centre + np.quantile(np.nanmax(excess, axis=1), quantile) * width


def band_shape(
    alive: Float[np.ndarray, "n t"], quantile: float
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"], Float[np.ndarray, "m t"]]:
    """Centre and width of FIPER's band, and the curves that they were not taken from. The longest
    curve and half of the others shape it; NaN where an episode has ended.
    """
    steps = alive.shape[1]
    longest = int(np.argmin(np.isnan(alive).sum(1)))
    others = np.delete(np.arange(len(alive)), longest)
    half = len(alive) // 2 - 1
    first = alive[np.r_[longest, others[:half]]]
    centre = np.nanmean(first, axis=0)
    deviation = np.nanmax(np.abs(first - centre), axis=1)
    everything = (len(first) + 1) * quantile > len(first)
    kept = (
        np.ones(len(first), bool) if everything else deviation <= np.quantile(deviation, quantile)
    )
    spread = np.abs(first[kept] - centre)
    covered = ~np.isnan(spread).all(0)
    width = np.where(covered, np.nanmax(np.nan_to_num(spread, nan=-1.0), axis=0), 0.0)
    width = np.where(
        covered, np.where(width == 0, 1 / steps, width), 1 / np.maximum(np.arange(steps), 1)
    )
    return centre, width, alive[others[half:]]


def fit_fiper(
    episodes: Episodes,
    *,
    layout: ChunkLayout,
    windows: tuple[int, int] = (5, 5),
    quantile: float = 0.95,
    style: ThresholdStyle = "quantile",
    need: Literal["all", "any"] = "all",
    **novelty: Any,
) -> Agreement:
    """Fit RND-OE and ACE on successes and normalise each by its threshold there.

    Args:
        episodes: features [observation embedding | sampled chunks]; only successes are used.
        layout: of the chunks.
        windows: window sizes of RND-OE and ACE.
        quantile: of the thresholds.
        style: of the thresholds.
        need: alarm when both or when any exceeds its threshold.
        **novelty: options of `fit_observation_novelty`.

    Raises:
        ValueError: no successful episode, or no features left for the embedding.
    """
    good = episodes.take(np.asarray(episodes.success, bool))
    chunk = layout.samples * layout.horizon * layout.dim
    widths = (episodes.dim - chunk, chunk)
    if widths[0] <= 0 or not len(good):
        raise ValueError(
            f"{len(good)} successes with {episodes.dim} features, of which {chunk} are chunks; "
            "FIPER "
            "needs successes, and an observation embedding before the chunks."
        )
    parts = [
        dataclasses.replace(good, features=good.features[..., : widths[0]]),
        dataclasses.replace(good, features=good.features[..., widths[0] :]),
    ]
    scores = (
        fit_observation_novelty(parts[0], **novelty),
        fit_action_chunk_entropy(parts[1], layout=layout),
    )
    detectors = tuple(Windowed(d, w) for d, w in zip(scores, windows, strict=True))
    limits = tuple(
        jnp.asarray(
            released_threshold(score_episodes(d, p.features, p.mask), p.mask, quantile, style),
            jnp.float32,
        )
        for d, p in zip(detectors, parts, strict=True)
    )
    return Agreement(detectors, limits, widths, need)
