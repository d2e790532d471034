"""FIPER: action-chunk entropy, windows, thresholds, alarms and metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mistjax.conformance.rows import Row, compare
from mistjax.detect.data import Episodes
from mistjax.detect.detector import score_episodes
from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.fiper.alarm import ThresholdStyle, band_shape, released_threshold
from mistjax.detect.methods.fiper.fiper import fit_action_chunk_entropy
from mistjax.detect.metrics import alarm_rates, first_alarm, time_weighted_accuracy
from mistjax.untrusted import read_npz

STYLES: dict[str, ThresholdStyle] = {
    "ct_quantile": "constant",
    "tvt_quantile": "quantile",
    "tvt_cp_band": "band",
}
METRICS = ("TPR", "TNR", "balanced_accuracy", "avg_detection_time", "TWA")


def _window_sums(scores: np.ndarray, mask: np.ndarray, window: str) -> np.ndarray:
    total = np.cumsum((scores + 1e-6) * mask, axis=1)
    if window == "all":
        return total
    return total - np.pad(total, ((0, 0), (int(window), 0)))[:, : total.shape[1]]


def _metrics(
    relative: np.ndarray, mask: np.ndarray, failed: np.ndarray, horizon: int
) -> list[float]:
    alarms = (relative > 1) & mask
    rates = alarm_rates(alarms.any(1), failed)
    hits = failed & alarms.any(1)
    time = first_alarm(alarms)[hits].mean() / (horizon - 1) if hits.any() else 1.0
    return [
        rates["tpr"],
        rates["tnr"],
        rates["bal_acc"],
        time,
        time_weighted_accuracy(alarms, failed, horizon),
    ]


def _threshold(
    scores: np.ndarray, mask: np.ndarray, quantile: float, style: ThresholdStyle
) -> np.ndarray:
    """As the release: its band measures deviations below the mean."""
    if style != "band":
        return released_threshold(scores, mask, quantile, style)
    alive = np.where(mask, scores, np.nan)[:, : int(mask.sum(1).max())]
    centre, width, rest = band_shape(alive, quantile)
    below = np.nanmax((centre - rest) / width, axis=1)
    return centre + np.quantile(below, quantile) * width


def _relative(scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Score / threshold; steps beyond the threshold use its mean, as the release does."""
    extra = max(scores.shape[1] - len(threshold), 0)
    return scores / np.append(threshold, np.full(extra, threshold.mean()))[: scores.shape[1]]


def fiper(folder: Path) -> list[Row]:
    """Every recorded array and metric."""
    z = read_npz(folder / "fiper/fiper.npz")
    tables = json.loads((folder / "fiper/fiper_metrics.json").read_text())
    chunks, n = z["action_preds"], int(z["n_calibration"])
    layout = ChunkLayout(*chunks.shape[1:])
    flat = np.split(chunks.reshape(len(chunks), -1), np.cumsum(z["lengths"])[:-1])
    episodes = Episodes.from_sequences(flat, z["successful"])
    mask, failed = episodes.mask, ~episodes.success[n:]
    rows = []
    for factor in (0.03, 0.1):
        for cubic in (0, 1):
            key = f"ace_cf{factor}_single{cubic}"
            detector = fit_action_chunk_entropy(
                episodes.take(np.arange(n)), layout=layout, factor=factor, cubic=bool(cubic)
            )
            scores = score_episodes(detector, jnp.asarray(episodes.features), jnp.asarray(mask))
            rows.append(compare("ace", key, np.asarray(scores)[mask], z[key], 2e-6))
            rows.append(compare("ace", f"{key} cells", detector.cell, z[f"{key}_cellsize"], 1e-7))
    padded = {k: np.zeros(mask.shape) for k in ("ace", "obs")}
    padded["ace"][mask], padded["obs"][mask] = z["ace_cf0.03_single0"], z["obs_scores"]
    windowed = {
        (k, w): _window_sums(s, mask, w)
        for k, s in padded.items()
        for w in ("1", "3", "5", "10", "all")
    }
    relative = {}
    for (name, window), scores in windowed.items():
        stem = f"{name}_w{window}"
        rows.append(compare("windows", stem, scores[mask], z[stem], 1e-12))
        for quantile in (0.9, 0.95):
            for style, ours in STYLES.items():
                key = f"{stem}_q{quantile}_{style}"
                threshold = _threshold(scores[:n], mask[:n], quantile, ours)
                rows.append(
                    compare("fiper thresholds", key, threshold, z[f"{key}_threshold"], 1e-12)
                )
                relative[key] = _relative(scores[n:], threshold)
                wanted = z[f"{key}_normtest"]
                rows.append(compare("fiper scores", key, relative[key][mask[n:]], wanted, 1e-12))
    for key, table in tables.items():
        both = re.fullmatch(r"obs_(and|or)_ace_w(\d+)-(\d+)_(.*)", key)
        value = relative.get(key)
        if both:
            mode, first, second, rest = both.groups()
            pair = relative[f"obs_w{first}_{rest}"], relative[f"ace_w{second}_{rest}"]
            value = np.minimum(*pair) if mode == "and" else np.maximum(*pair)
        if value is None:
            continue
        ours = _metrics(value, mask[n:], failed, int(z["lengths"].max()))
        rows.append(compare("fiper metrics", key, ours, [table[m] for m in METRICS], 1e-6))
    return rows


GROUPS = {("fiper/fiper.npz", "fiper/fiper_metrics.json"): fiper}
