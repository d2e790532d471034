"""How good a detector is: ranking, alarms, time to detect, and the uncertainty of each number.

Failure is the positive class. `failed` is [n] bool, `stop` the number of steps looked at per
episode: pass `episodes.earliest_stop` for "by earliest stop" (an episode's length then tells
nothing) and `episodes.lengths` for the whole episode.
Source: SAFE (arXiv 2506.09937), section 5 and appendix; FIPER (NeurIPS 2025) for time-weighted
accuracy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats
from sklearn import metrics as sk

from mistjax.detect.data import Episodes

Scores = Shaped[Any, "n t"]


def peak(scores: Scores, stop: Shaped[Any, " n"]) -> Float[np.ndarray, " n"]:
    """Largest score within the first `stop` steps of each episode."""
    scores = np.asarray(scores, np.float64)
    return np.where(np.arange(scores.shape[1]) < np.asarray(stop)[:, None], scores, -np.inf).max(1)


def at_fraction(
    scores: Scores, stop: Shaped[Any, " n"], fraction: float
) -> Float[np.ndarray, " n"]:
    """Score at step round((stop - 1) * fraction) of each episode."""
    step = np.round((np.asarray(stop) - 1) * fraction).astype(int)
    return np.asarray(scores, np.float64)[np.arange(len(step)), step]


def roc_auc(score: Shaped[Any, " n"], failed: Shaped[Any, " n"]) -> float:
    """Area under the ROC curve, from ranks (ties count half); NaN when only one class is present.

    Raises:
        ValueError: a NaN score, which has no rank.
    """
    score, failed = np.asarray(score), np.asarray(failed, bool)
    if np.isnan(score).any():
        raise ValueError(f"{np.isnan(score).sum()} scores are NaN; they have no rank.")
    positives = int(failed.sum())
    pairs = positives * (len(failed) - positives)
    if not pairs:
        return float("nan")
    above = stats.rankdata(score)[failed].sum() - positives * (positives + 1) / 2
    return float(above / pairs)


def auprc(score: Shaped[Any, " n"], failed: Shaped[Any, " n"]) -> float:
    """Area under the precision-recall curve by the trapezoid rule, SAFE's choice; NaN with one
    class.

    `sklearn.metrics.average_precision_score` is the step-wise alternative.
    """
    failed = np.asarray(failed, bool)
    if not 0 < failed.sum() < len(failed):
        return float("nan")
    ranks = stats.rankdata(score, method="dense")  # all that the curve depends on; +inf has one
    precision, recall, _ = sk.precision_recall_curve(failed, ranks)
    return float(sk.auc(recall, precision))


def alarm_rates(alarm: Shaped[Any, " n"], failed: Shaped[Any, " n"]) -> dict[str, float]:
    """tpr, tnr, fpr, fnr, acc, bal_acc, f1 and weighted-acc (each class weighted by the other's
    frequency).
    """
    alarm, failed = np.asarray(alarm, bool), np.asarray(failed, bool)
    positives, negatives = int(failed.sum()), int((~failed).sum())
    hits, rejections = int((alarm & failed).sum()), int((~alarm & ~failed).sum())
    tpr = hits / positives if positives else float("nan")
    tnr = rejections / negatives if negatives else float("nan")
    n = len(failed)
    return {
        "tpr": tpr,
        "tnr": tnr,
        "fpr": 1 - tnr,
        "fnr": 1 - tpr,
        "acc": (hits + rejections) / n,
        "bal_acc": (tpr + tnr) / 2,
        "f1": 2 * hits / max(hits + int(alarm.sum()) + positives - hits, 1),
        "weighted-acc": tpr * negatives / n + tnr * positives / n,
    }


def first_alarm(alarms: Shaped[Any, "n t"]) -> Int[np.ndarray, " n"]:
    """Step of each episode's first alarm, -1 for none."""
    alarms = np.asarray(alarms, bool)
    return np.where(alarms.any(1), alarms.argmax(1), -1)


def relative_detection_time(
    alarms: Shaped[Any, "n t"], lengths: Shaped[Any, " n"]
) -> Float[np.ndarray, " n"]:
    """First alarm divided by the episode's length, 1 for none. SAFE averages it over failures."""
    first = first_alarm(alarms)
    return np.where(first < 0, 1.0, first / np.asarray(lengths))


def detection_latency(
    alarms: Shaped[Any, "n t"], onset: Shaped[Any, " n"]
) -> Float[np.ndarray, " n"]:
    """Steps from the true onset of a failure to the first alarm at or after it.

    Inf when there is none, NaN for episodes without an onset (-1). Alarms before the onset are not
    detections.
    """
    onset = np.asarray(onset)
    alarms = np.asarray(alarms, bool)
    after = first_alarm(alarms & (np.arange(alarms.shape[1]) >= onset[:, None]))
    return np.where(onset < 0, np.nan, np.where(after < 0, np.inf, after - onset))


def time_weighted_accuracy(
    alarms: Shaped[Any, "n t"], failed: Shaped[Any, " n"], horizon: int
) -> float:
    """(sum over detected failures of (1 - t / (horizon - 1)) / failures + true negative rate) / 2.

    Args:
        alarms: alarms on valid steps.
        failed: outcomes.
        horizon: longest episode of the whole data set.
    """
    failed = np.asarray(failed, bool)
    first = first_alarm(alarms)
    early = np.where(first < 0, 0.0, 1 - first / (horizon - 1))
    return float((early[failed].mean() + (first[~failed] < 0).mean()) / 2)


class Tradeoff(NamedTuple):
    """One row per threshold."""

    threshold: Float[np.ndarray, " k"]
    detection_time: Float[np.ndarray, " k"]
    bal_acc: Float[np.ndarray, " k"]
    tpr: Float[np.ndarray, " k"]
    tnr: Float[np.ndarray, " k"]


def accuracy_time_tradeoff(
    scores: Scores, lengths: Shaped[Any, " n"], failed: Shaped[Any, " n"]
) -> Tradeoff:
    """Balanced accuracy against mean relative detection time of failures, over many constant
    thresholds.

    Thresholds: 101 percentiles of all valid scores, each episode's mid-range, and 1% of the range
        beyond both ends.
    """
    scores, lengths, failed = (
        np.asarray(scores, np.float64),
        np.asarray(lengths),
        np.asarray(failed, bool),
    )
    mask = np.arange(scores.shape[1]) < lengths[:, None]
    flat = scores[mask]
    low, span = flat.min(), np.ptp(flat)
    unit = (scores - low) / (span + 1e-5)
    top = peak(unit, lengths)
    middle = (top - peak(-unit, lengths)) / 2
    cuts = np.unique(
        np.concatenate([np.percentile(unit[mask], np.arange(101)), [-0.01, 1.01], middle])
    )
    rows = []
    for cut in cuts:
        alarms = (unit >= cut) & mask
        rates = alarm_rates(alarms.any(1), failed)
        time = relative_detection_time(alarms, lengths)[failed].mean()
        rows.append([cut * span + low, time, rates["bal_acc"], rates["tpr"], rates["tnr"]])
    return Tradeoff(*np.array(rows).T)


def summary(scores: Scores, episodes: Episodes) -> dict[str, float]:
    """ROC-AUC and AUPRC by earliest stop and over full episodes, and the mean per-task AUC by
    earliest stop.

    The per-task mean leaves out tasks with one class. Full-episode numbers reward knowing the
    length.
    """
    failed, task = ~np.asarray(episodes.success, bool), np.asarray(episodes.task_id)
    early, full = peak(scores, episodes.earliest_stop), peak(scores, episodes.lengths)
    per_task = [roc_auc(early[task == k], failed[task == k]) for k in np.unique(task)]
    per_task = [x for x in per_task if np.isfinite(x)]
    return {
        "roc_auc": roc_auc(early, failed),
        "auprc": auprc(early, failed),
        "roc_auc_full": roc_auc(full, failed),
        "auprc_full": auprc(full, failed),
        "roc_auc_task_mean": float(np.mean(per_task)) if per_task else float("nan"),
    }
