"""Does a calibration still hold for what was recorded since?

Every success gives one number, the most that its score rose above the threshold; the test of
`martingale` compares it with those of the calibration, in the order of recording. A threshold's
promise is about the bare policy, so episodes in which a remedy acted say nothing about it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mistjax.detect.artifact import load_calibrated, read_card
from mistjax.detect.calibration.conformal import excess
from mistjax.detect.calibration.martingale import ExchangeabilityMonitor
from mistjax.detect.detector import score_episodes
from mistjax.detect.from_runs import episodes_from_runs, policy_of
from mistjax.rollouts.run import Run
from mistjax.stats import Rate


@dataclasses.dataclass(frozen=True)
class Drift:
    """What later successes say about a calibration.

    Attributes:
        monitor: the test after all of them.
        evidence: its wealth after each.
        false_alarms: how many of them raised an alarm.
    """

    monitor: ExchangeabilityMonitor
    evidence: tuple[float, ...]
    false_alarms: Rate

    def describe(self) -> str:
        """Two sentences for reports."""
        alarmed = f"{self.false_alarms} of the successes since then raised an alarm."
        return f"{alarmed} {self.monitor.describe()}"


def drift(calibration: Sequence[float], later: Sequence[float], delta: float = 0.01) -> Drift:
    """Compares later successes with those that set the threshold.

    Args:
        calibration: what `calibration.runs.ranked` gave.
        later: the same of later successes, in their order.
        delta: chance of a false "stale" verdict, however many there are.

    Raises:
        ValueError: no numbers to compare with, or a NaN.
    """
    if not len(calibration):
        raise ValueError(
            "the calibration holds no numbers to compare with: its threshold is +inf, or it is of "
            "an older release; run `mistjax calibrate` again."
        )
    monitor, evidence = ExchangeabilityMonitor(np.array(calibration), delta=delta), []
    for value in later:
        monitor = monitor.update(float(value))
        evidence.append(monitor.wealth)
    return Drift(monitor, tuple(evidence), Rate(sum(v > 0 for v in later), len(later)))


def check_drift(
    folder: Path, runs: Sequence[Run], *, stratum: str | None = None, delta: float = 0.01
) -> Drift:
    """The same for recorded runs of the bare policy, whose features the detector scores.

    Args:
        folder: a calibrated detector.
        runs: in the order of recording, with the detector's taps.
        stratum: which of its thresholds, where it has several.
        delta: see `drift`.

    Raises:
        FingerprintError: the runs are of another policy.
        ValueError: taps were not recorded, no threshold, or see `drift`.
    """
    found, threshold = load_calibrated(folder, policy_of(runs), stratum)
    episodes = episodes_from_runs(runs, found.reads)
    episodes = episodes.take(np.asarray(episodes.success))
    scores = np.asarray(score_episodes(found.detector, episodes.features, episodes.mask))
    later = excess(threshold, scores, episodes.mask).tolist()
    return drift(known_excess(folder, stratum), later, delta)


def watched_drift(folder: Path, run: Run, *, stratum: str | None = None) -> Drift:
    """The same for a run in which the monitor of `folder` watched and nothing was steered."""
    traces = [trace for trace in run.traces() if trace.success]
    above = [np.asarray(t.score) - np.asarray(t.threshold) for t in traces]
    later = [float(np.where(np.isnan(a), np.inf, a).max()) for a in above]
    return drift(known_excess(folder, stratum), later)


def known_excess(folder: Path, stratum: str | None = None) -> list[float]:
    """What a calibration noted; [] for none."""
    return read_card(folder)["calibration"].get("excess", {}).get(stratum or "", [])
