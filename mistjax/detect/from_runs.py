"""Recorded runs in, a trained and calibrated detector on disk out.

What `mistjax train-detector` and `mistjax calibrate` do. Training and calibration take different
episodes: the promise of a threshold holds for successes that the detector was not fitted to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mistjax.detect.artifact import Provenance, load_detector, read_card, save_detector
from mistjax.detect.calibration.conformal import (
    Band,
    Threshold,
    calibrate_strata,
    excess,
    reference_rows,
)
from mistjax.detect.data import Episodes
from mistjax.detect.detector import score_episodes
from mistjax.detect.features import DEFAULT_FEATURES, FeatureSpec
from mistjax.detect.metrics import summary
from mistjax.detect.registry import fit_detector
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace


def episodes_from_runs(
    runs: Sequence[Run],
    features: FeatureSpec,
    *,
    group: Callable[[Trace], str] = lambda trace: trace.task,
) -> Episodes:
    """The finished episodes of several runs of one policy.

    Args:
        runs: with the taps of `features`.
        features: what a detector reads.
        group: what counts as one task. Metrics by earliest stop compare episodes of one task up to
            its shortest episode, so put tasks of similar length together.

    Raises:
        ValueError: no runs, runs of different policies, or taps that were not recorded.
    """
    policy_of(runs)
    traces = [trace for run in runs for trace in run.traces()]
    if not traces:
        raise ValueError(f"no episode of {[str(run.path) for run in runs]} has ended: record more.")
    groups = [group(trace) for trace in traces]
    names = sorted(set(groups))
    return Episodes.from_sequences(
        [features.recorded(trace.features) for trace in traces],
        [trace.success for trace in traces],
        [names.index(name) for name in groups],
        [trace.seed for trace in traces],
    )


def policy_of(runs: Sequence[Run]) -> str:
    """The fingerprint of the one policy that the runs are of; ValueError for none or several."""
    policies = {run.config.get("policy_fingerprint") for run in runs} - {None}
    if len(policies) != 1:
        raise ValueError(
            f"the runs are of {len(policies)} policies: give runs of one, a detector reads its "
            "activations."
        )
    return policies.pop()


def provenance(policy_fingerprint: str, features: FeatureSpec) -> Provenance:
    """What a detector of these features is made with."""
    taps = " + ".join(str(tap) for tap in features.taps)
    return Provenance(policy_fingerprint, taps, features.steps)


def train_detector(
    runs: Sequence[Run],
    out: Path,
    *,
    name: str = "safe_mlp",
    features: FeatureSpec = DEFAULT_FEATURES,
    group: Callable[[Trace], str] = lambda trace: trace.task,
    **options: Any,
) -> dict[str, float]:
    """Fits a detector on every finished episode of the runs and writes it, without a threshold.

    Args:
        runs: of one policy, with the taps of `features`.
        out: folder of the artefact.
        name: key of `DETECTORS`.
        features: what it reads.
        group: tasks of similar length, for metrics by earliest stop.
        **options: of the detector's fit.

    Returns:
        Its metrics on the training episodes themselves.
    """
    episodes = episodes_from_runs(runs, features, group=group)
    fingerprint = policy_of(runs)
    detector = fit_detector(name, episodes, standardised=True, **options)
    scores = score_episodes(detector, episodes.features, episodes.mask)
    metrics = summary(np.asarray(scores), episodes)
    notes = {
        "detector": name,
        "features": features.to_json(),
        "trained_on": [str(run.path) for run in runs],
        "episodes": len(episodes),
        "failures": int((~episodes.success).sum()),
        "training_metrics": _defined(metrics),
    }
    save_detector(out, detector, provenance(fingerprint, features), notes=notes)
    return metrics


def calibrate_detector(
    folder: Path,
    runs: Sequence[Run],
    *,
    alpha: float = 0.1,
    band: Band = "stdev",
    group: Callable[[Trace], str] = lambda trace: trace.task,
    strata: str | None = None,
    seed: int = 0,
    confidence: float | None = None,
) -> tuple[dict[str, Threshold], dict[str, float]]:
    """Calibrates a trained detector on the successes of other runs and writes its threshold.

    Args:
        folder: what `train_detector` wrote; its threshold is replaced.
        runs: of the same policy, with the same taps.
        alpha: bound on the chance of any alarm in a successful episode.
        band: shape of the threshold over time.
        group: tasks of similar length, for metrics by earliest stop.
        strata: one threshold for each value of this key, see `stratum_of`: the promise then holds
            within each. None is one threshold for all, under the name "".
        seed: which successes give the band its shape.
        confidence: share of calibrations for which the bound holds; None bounds their average.

    Returns:
        (stratum -> threshold, the detector's metrics on these episodes).

    Raises:
        FingerprintError: the runs are of another policy.
        ValueError: a stratum without successes; see `calibrate`.
    """
    card = read_card(folder)
    features = FeatureSpec.from_json(card["notes"]["features"])
    fingerprint = policy_of(runs)
    detector, _ = load_detector(folder, provenance(fingerprint, features))
    episodes = episodes_from_runs(runs, features, group=group)
    scores = np.asarray(score_episodes(detector, episodes.features, episodes.mask))
    labels = np.array([stratum_of(run, trace, strata) for run in runs for trace in run.traces()])
    mask, success = np.asarray(episodes.mask), np.asarray(episodes.success)
    thresholds = calibrate_strata(
        scores, mask, success, labels, alpha, band=band, seed=seed, confidence=confidence
    )
    metrics = summary(scores, episodes)
    notes = {
        **card["notes"],
        "calibrated_on": [str(run.path) for run in runs],
        "calibration_episodes": len(episodes),
        "calibration_metrics": _defined(metrics),
        "calibration_excess": {
            name: ranked(threshold, scores[rows], mask[rows], success[rows], seed)
            for name, threshold in thresholds.items()
            for rows in [labels == name]
        },
    }
    threshold = thresholds[""] if strata is None else thresholds
    save_detector(
        folder, detector, provenance(fingerprint, features), threshold=threshold, notes=notes
    )
    return thresholds, metrics


def ranked(
    threshold: Threshold,
    scores: Float[np.ndarray, "n t"],
    mask: Bool[np.ndarray, "n t"],
    success: Bool[np.ndarray, " n"],
    seed: int = 0,
) -> list[float]:
    """The numbers that later successes are compared with (see `drift`): how far the scores of the
    successes that set the rank rise above the threshold. [] for a threshold of +inf.
    """
    _, rest = reference_rows(int(success.sum()), threshold.band, seed=seed)
    values = excess(threshold, scores[success][rest], mask[success][rest])
    return values.tolist() if np.isfinite(values).all() else []


def stratum_of(run: Run, trace: Trace, key: str | None) -> str:
    """What an episode's threshold is chosen by: a setting of its run, such as LIBERO's `suite`, a
    key of a JSON task, or "task" for the task itself; "" without a key.

    Raises:
        ValueError: the episode has none of that.
    """
    if key is None:
        return ""
    return str(run.config[key]) if key in run.config else task_group(trace, key)


def task_group(trace: Trace, key: str | None) -> str:
    """The value of `key` in a JSON task; the whole task for "task" or None.

    Raises:
        ValueError: the task is no JSON object with that key.
    """
    if key in (None, "task"):
        return trace.task
    try:
        return str(json.loads(trace.task)[key])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"the task {trace.task!r} of seed {trace.seed} has no {key!r}: leave the key out, or "
            "name one of a JSON task."
        ) from None


def report_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON: None for one that these episodes do not define (NaN)."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
