"""One row of the comparison: fit a detector, calibrate its threshold, judge both on test episodes.

Rankings and times have bootstrap intervals over test episodes, alarm rates Wilson intervals.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mistjax.detect.bench.config import BenchConfig
from mistjax.detect.bench.episodes import Recorded
from mistjax.detect.bench.inputs import Case
from mistjax.detect.calibration.conformal import CalibrationWarning, Threshold, calibrate
from mistjax.detect.data import Episodes
from mistjax.detect.detector import score_episodes
from mistjax.detect.metrics import (
    accuracy_time_tradeoff,
    alarm_rates,
    auprc,
    detection_latency,
    peak,
    relative_detection_time,
    roc_auc,
)
from mistjax.detect.registry import fit_detector
from mistjax.stats import bootstrap, wilson

RANKING = ("roc_auc", "auprc", "roc_auc_full", "auprc_full", "roc_auc_task_mean")
ALARMS = ("bal_acc", "detected", "false_alarms", "detection_time")
COSTS = ("fit_s", "step_us")
Row = dict[str, Any]


def evaluate(case: Case, recorded: Recorded, config: BenchConfig) -> Row:
    """A row; what the detector refuses (too few frames, one class only) becomes its remark."""
    reads = case.method.reads or "time"
    row: Row = {"name": case.name, "control": case.method.control, "reads": reads}
    if case.reads is None:
        return row | {"status": "not applicable", "remark": case.missing}
    try:
        scored = _scored(case, recorded.episodes(case.reads), recorded, config)
    except ValueError as error:
        return row | {"status": "refused", "remark": str(error)}
    return row | {"status": "scored"} | scored


def _scored(case: Case, episodes: Episodes, recorded: Recorded, config: BenchConfig) -> Row:
    train, held, test = (episodes.take(index) for index in recorded.split)
    start = time.perf_counter()
    detector = fit_detector(case.name, train, standardised=case.method.standardised, **case.options)
    jax.block_until_ready(detector)
    fit_s = time.perf_counter() - start
    scores, step_us = _timed_scores(detector, test)
    if wrong := int((~np.isfinite(scores[test.mask])).sum()):
        raise ValueError(f"{wrong} scores of test episodes are not finite.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # the remark says so
        threshold = calibrate(
            _scores(detector, held),
            held.mask,
            held.success,
            config.alpha,
            band=config.band,
            seed=config.seed,
        )
    curve = accuracy_time_tradeoff(scores, test.lengths, ~test.success)
    return {
        **ranking(scores, test, config.draws),
        **alarms(threshold, scores, test, config.draws),
        **latency(threshold, scores, test, recorded.onset[recorded.split.test], config.draws),
        "fit_s": fit_s,
        "step_us": step_us,
        "remark": "; ".join(part for part in (case.note, _infinite(threshold)) if part),
        "curve": {"time": curve.detection_time.tolist(), "bal_acc": curve.bal_acc.tolist()},
    }


def ranking(scores: np.ndarray, test: Episodes, draws: int) -> dict[str, Any]:
    """ROC-AUC and AUPRC by earliest stop and over whole episodes, and the mean AUC per task."""
    failed, task = ~test.success, test.task_id
    early, full = peak(scores, test.earliest_stop), peak(scores, test.lengths)

    def task_mean(i: np.ndarray) -> float:
        aucs = [
            roc_auc(early[i][task[i] == k], failed[i][task[i] == k]) for k in np.unique(task[i])
        ]
        defined = [auc for auc in aucs if math.isfinite(auc)]
        return float(np.mean(defined)) if defined else float("nan")

    measures: dict[str, Callable[[np.ndarray], float]] = {
        "roc_auc": lambda i: roc_auc(early[i], failed[i]),
        "auprc": lambda i: auprc(early[i], failed[i]),
        "roc_auc_full": lambda i: roc_auc(full[i], failed[i]),
        "auprc_full": lambda i: auprc(full[i], failed[i]),
        "roc_auc_task_mean": task_mean,
    }
    return {name: _estimate(measure, len(test), draws) for name, measure in measures.items()}


def alarms(threshold: Threshold, scores: np.ndarray, test: Episodes, draws: int) -> dict[str, Any]:
    """Of the calibrated threshold, over whole episodes. An undetected failure's time is 1."""
    raised = np.asarray(threshold.alarms(jnp.asarray(scores), jnp.asarray(test.mask)))
    any_alarm, failed = np.any(raised, axis=1), ~np.asarray(test.success)
    times = relative_detection_time(raised, test.lengths)

    def rate(of: np.ndarray) -> dict[str, float | None]:
        k, n = int(any_alarm[of].sum()), int(of.sum())
        return _value(k / n, *wilson(k, n))

    def mean_time(i: np.ndarray) -> float:
        return float(times[i][failed[i]].mean()) if failed[i].any() else float("nan")

    return {
        "bal_acc": _estimate(
            lambda i: alarm_rates(any_alarm[i], failed[i])["bal_acc"], len(test), draws
        ),
        "detected": rate(failed),
        "false_alarms": rate(~failed),
        "detection_time": _estimate(mean_time, len(test), draws),
    }


def latency(
    threshold: Threshold, scores: np.ndarray, test: Episodes, onset: np.ndarray, draws: int
) -> dict[str, Any]:
    """Median number of inferences from a fault's onset to the first alarm after it, over failures
    that recorded one; where none follows, those to the end of the episode. {} without an onset.
    """
    raised = threshold.alarms(jnp.asarray(scores), jnp.asarray(test.mask))
    late = detection_latency(raised, np.where(test.success, -1, onset))
    late = np.where(np.isinf(late), test.lengths - onset, late)[~np.isnan(late)]
    if not len(late):
        return {}
    return {"latency": _estimate(lambda i: float(np.median(late[i])), len(late), draws)}


def _scores(detector: Any, episodes: Episodes) -> np.ndarray:
    return np.asarray(score_episodes(detector, episodes.features, episodes.mask))


def _timed_scores(detector: Any, episodes: Episodes) -> tuple[np.ndarray, float]:
    """Scores, and microseconds of one step of one episode of the batch, compilation left out."""
    _scores(detector, episodes)
    start = time.perf_counter()
    scores = _scores(detector, episodes)
    return scores, 1e6 * (time.perf_counter() - start) / episodes.mask.size


def _infinite(threshold: Threshold) -> str:
    """Why nothing alarms, if so."""
    if threshold.rank <= threshold.n_calibration:
        return ""
    return (
        f"threshold +inf: {threshold.n_calibration} calibration successes cannot promise "
        f"{threshold.alpha:g}"
    )


def _estimate(
    measure: Callable[[np.ndarray], float], n: int, draws: int
) -> dict[str, float | None]:
    return _value(measure(np.arange(n)), *bootstrap(measure, n, draws=draws))


def _value(value: float, low: float, high: float) -> dict[str, float | None]:
    """None for what these episodes do not define (NaN)."""
    numbers = {"value": value, "low": low, "high": high}
    return {name: float(x) if math.isfinite(x) else None for name, x in numbers.items()}
