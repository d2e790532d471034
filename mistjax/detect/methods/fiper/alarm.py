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
from mistjax.detect.methods.combinators import Agreement, Windowed
from mistjax.detect.methods.fiper.fiper import fit_action_chunk_entropy, fit_observation_novelty
from mistjax.detect.methods.samples.action_samples import ChunkLayout

ThresholdStyle = Literal["constant", "quantile", "band"]


def released_threshold(
    scores: Shaped[Any, "n t"],
    mask: Shaped[Any, "n t"],
    quantile: float,
    style: ThresholdStyle,
    *,
    official: bool = False,
) -> Float[np.ndarray, " k"]:
    """FIPER's thresholds from successful calibration episodes; none has a finite-sample guarantee.

    Args:
        scores: windowed scores.
        mask: valid steps.
        quantile: of episode maxima ("constant"), of the scores alive at each step ("quantile"), or
            of the largest standardised deviations ("band").
        style: which.
        official: measure deviations of the band downwards (mean - score), as the release does
            although it is an upper band.

    Returns:
        [1] for "constant", else one value per step of the longest episode.
    """
    scores, mask = np.asarray(scores, np.float64), np.asarray(mask, bool)
    steps = int(mask.sum(1).max())
    alive = np.where(mask, scores, np.nan)[:, :steps]
    if style == "constant":
        return np.array([np.quantile(np.nanmax(alive, axis=1), quantile)])
    if style == "quantile":
        return np.nanquantile(alive, quantile, axis=0)
    longest = int(np.argmax(mask.sum(1)))
    rest = np.delete(np.arange(len(alive)), longest)
    half = len(alive) // 2 - 1
    first, second = alive[np.r_[longest, rest[:half]]], alive[rest[half:]]
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
    excess = (centre - second if official else second - centre) / width
    return centre + np.quantile(np.nanmax(excess, axis=1), quantile) * width


def relative_scores(
    scores: Shaped[Any, "n t"], threshold: Float[np.ndarray, " k"], *, official: bool = False
) -> Float[np.ndarray, "n t"]:
    """Score / threshold; above 1 is an alarm. Steps beyond the threshold use its last value
    (official: its mean).
    """
    scores = np.asarray(scores, np.float64)
    later = threshold.mean() if official else threshold[-1]
    extra = max(scores.shape[1] - len(threshold), 0)
    return scores / np.concatenate([threshold, np.full(extra, later)])[: scores.shape[1]]


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
