"""A trained detector and recorded runs in, its threshold on disk out: `mistjax calibrate`.

The promise of a threshold holds for successes that the detector was not fitted to, so episodes that
trained it are refused.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from mistjax.detect.artifact import Artifact, load_detector, save_detector
from mistjax.detect.calibration.conformal import (
    Band,
    CalibrationWarning,
    Threshold,
    calibrate_strata,
    excess,
    finite_sample_rank,
    reference_rows,
)
from mistjax.detect.detector import score_episodes
from mistjax.detect.from_runs import (
    Group,
    Recorded,
    by_task,
    defined,
    policy_of,
    read_runs,
    report_metrics,
)
from mistjax.detect.metrics import summary
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import to_json


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What `calibrate_detector` found.

    Attributes:
        thresholds: stratum -> threshold; "" is one for all.
        metrics: of the detector on the calibration episodes.
        episodes, failures: those.
        assumed: what the promise rests on.
    """

    thresholds: Mapping[str, Threshold]
    metrics: Mapping[str, float]
    episodes: int
    failures: int
    assumed: str

    def describe(self) -> str:
        """The promise, what it rests on, and what each number is of."""
        lines = [
            f"{stratum}: {threshold.describe()}" if stratum else threshold.describe()
            for stratum, threshold in self.thresholds.items()
        ]
        judged = f"On these {self.episodes} episodes, {self.failures} of them failures: "
        return "\n".join([*lines, self.assumed, judged + f"{report_metrics(self.metrics)}."])


def calibrate_detector(
    folder: Path | str,
    runs: Sequence[Run],
    *,
    alpha: float = 0.1,
    band: Band = "stdev",
    group: Group = by_task,
    strata: str | None = None,
    seed: int = 0,
    confidence: float | None = None,
) -> Calibrated:
    """Calibrates a trained detector on the successes of other runs and writes its threshold.

    Args:
        folder: what `train_detector` wrote; its threshold is replaced.
        runs: of the same policy, with what the detector reads.
        alpha: bound on the chance of any alarm in a successful episode.
        band: shape of the threshold over time.
        group: tasks of similar length, for metrics by earliest stop.
        strata: one threshold for each value of this key, see `stratum_of`: the promise then holds
            within each. None is one threshold for all, under the name "".
        seed: which successes give the band its shape.
        confidence: share of calibrations for which the bound holds; None bounds their average.

    Raises:
        FingerprintError: the runs are of another policy.
        ValueError: an episode trained the detector or is given twice, its score is not finite, or a
            stratum has no successes; see `calibrate`.
    """
    finite_sample_rank(1, alpha, confidence)
    if seed < 0:
        raise ValueError(f"seed is {seed}: expected 0 or more.")
    found = load_detector(folder, policy_of(runs))
    recorded = read_runs(runs, found.reads, group=group, strata=strata)
    known = _refuse_training(found, recorded, runs)
    episodes, labels = recorded.episodes, np.array(recorded.strata)
    scores = np.asarray(score_episodes(found.detector, episodes.features, episodes.mask))
    mask, success = np.asarray(episodes.mask), np.asarray(episodes.success)
    _refuse_broken(recorded, scores)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # `describe` says so
        thresholds = calibrate_strata(
            scores, mask, success, labels, alpha, band=band, seed=seed, confidence=confidence
        )
    metrics = summary(scores, episodes)
    about = {
        "runs": [str(run.path) for run in runs],
        "episodes": len(episodes),
        "identities": list(recorded.identities),
        "metrics": defined(metrics),
        "excess": {
            name: ranked(threshold, scores[rows], mask[rows], success[rows], seed)
            for name, threshold in thresholds.items()
            for rows in [labels == name]
        },
        "perturbations": sorted({to_json(run.config.get("perturbation", {})) for run in runs}),
    }
    threshold = thresholds[""] if strata is None else thresholds
    save_detector(folder, dataclasses.replace(found, threshold=threshold, calibration=about))
    failures = int((~success).sum())
    assumed = _assumption(known, about["perturbations"])
    return Calibrated(thresholds, metrics, len(episodes), failures, assumed)


def _refuse_training(found: Artifact, recorded: Recorded, runs: Sequence[Run]) -> bool:
    """Whether the artefact knows its training episodes; ValueError where one is given again."""
    known = "identities" in found.training
    trained_on = set(found.training.get("identities", ()))
    again = [
        name
        for name, one in zip(recorded.names, recorded.identities, strict=True)
        if one in trained_on
    ]
    if not known:  # an older release kept only the paths
        paths = {Path(path).resolve() for path in found.training.get("runs", ())}
        again = [str(run.path) for run in runs if run.path and run.path.resolve() in paths]
    if again:
        raise ValueError(
            f"{again[0]}{f' and {len(again) - 1} more' if again[1:] else ''} trained the detector: "
            "its threshold must come from other episodes. Record them with other seeds "
            "(`mistjax collect ... --first-seed N`)."
        )
    return known


def _refuse_broken(recorded: Recorded, scores: Float[np.ndarray, "n t"]) -> None:
    """ValueError names successes with a score that is not finite: they set the threshold."""
    episodes = recorded.episodes
    broken = (~np.isfinite(scores) & np.asarray(episodes.mask)).any(1)
    named = [recorded.names[i] for i in np.flatnonzero(broken & np.asarray(episodes.success))]
    if named:
        raise ValueError(
            f"the scores of {len(named)} successes are not finite, such as {named[0]}: what the "
            "detector reads was broken there, or it cannot score it. Leave those episodes out."
        )


def _assumption(known: bool, perturbations: Sequence[str]) -> str:
    checked = (
        "none of them trained the detector (checked, by policy, environment, seed, task and "
        "perturbation)"
        if known
        else "none of them trained the detector (an older release wrote it, so this is not checked)"
    )
    under = " and ".join("none" if text == "{}" else text for text in perturbations)
    return (
        f"Assumed: episodes to come are like these, in any order (perturbation: {under}), and the "
        f"policy is not steered; {checked}."
    )


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
