"""Do the shipped monitors keep their promise on clean episodes, and what else would it cost?

    python -m experiments.studies.faults.record --purposes fitting calibration test
    mistjax collect checkpoints/board_pi0 --out runs/texture --episodes 100 --first-seed 4900000 \
        --perturbation table_texture 0.4
    python -m experiments.studies.quiet --former FOLDER

Clean episodes have sensor noise. For the monitor of failures (*the episode fails*) an alarm is
wrong in an episode that succeeds; for that of the inputs (*an input is unsound*), in any. FOLDER is
the monitor of an earlier release; without it that row is left as it is.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.record import write_results
from experiments.studies.events import Scored, together
from experiments.studies.faults.detectors import Config as Recorded
from experiments.studies.faults.detectors import Recordings
from mistjax.compilation import enable_cache
from mistjax.detect import Episodes, score_episodes
from mistjax.detect.artifact import Artifact, load_calibrated
from mistjax.detect.calibration.conformal import Threshold, calibrate, coverage_law
from mistjax.rollouts.run import load_run

ALPHA, CONFIDENCE = 0.1, 0.95


@dataclasses.dataclass(frozen=True)
class Config:
    """What is read and written.

    Attributes:
        policy: the recorded policy.
        mist: its monitors.
        former: those of an earlier release.
        runs: what `experiments.studies.faults.record` wrote.
        texture: perturbed episodes.
        out: the results.
    """

    policy: str = "checkpoints/board_pi0"
    mist: Path = Path("checkpoints/board_mist")
    former: Path | None = None
    runs: Path = Path("runs/faults")
    texture: Path = Path("runs/texture")
    out: Path = Path("experiments/results/quiet.json")


def main(config: Config) -> dict[str, Any]:
    """Measures and writes every threshold."""
    runs = Recordings(Recorded(config.policy, config.mist, config.runs))
    found, shipped = load_calibrated(config.mist, runs.policy.spec.fingerprint)
    parts = {name: runs[f"{name}/clean"] for name in ("fitting", "calibration", "test")}
    scores = {name: scored(found, part.reads["hidden"]).scores for name, part in parts.items()}
    clean = {name: part.scored(scores[name]) for name, part in parts.items()}
    good = {name: ~part.failed for name, part in parts.items()}
    traces = list(load_run(config.texture).traces())
    perturbed = scored(
        found,
        Episodes.from_sequences(
            [found.reads.recorded(t) for t in traces], [t.success for t in traces]
        ),
    )

    def of_failures(name: str, calibrated_on: str, threshold: Threshold) -> dict[str, Any]:
        wrong, right = (
            clean["test"][rows].alarmed(threshold) for rows in (good["test"], ~good["test"])
        )
        above = perturbed.alarms(threshold)
        first = np.where(above.any(1), above.argmax(1), -1)
        counts = [(first == 0).sum(), (first == 1).sum(), (first > 1).sum(), (first < 0).sum()]
        return row(f"failure, {name}", calibrated_on, threshold, wrong) | {
            "detected": {"k": int(right.sum()), "n": len(right)},
            "first_alarm": [int(count) for count in counts],
        }

    def limit(names: tuple[str, ...], confidence: float | None, band: Any = "stdev") -> Threshold:
        both = together([clean[name] for name in names])
        success = np.concatenate([good[name] for name in names])
        return calibrate(both.scores, both.mask, success, ALPHA, band=band, confidence=confidence)

    both = ("calibration", "fitting")
    rows = [
        of_failures("shipped", "1000 clean episodes", shipped),
        of_failures("on average", "1000 clean episodes", limit(both, None)),
        of_failures("fewer episodes", "600 clean episodes", limit(both[:1], CONFIDENCE)),
        of_failures("constant", "1000 clean episodes", limit(both, CONFIDENCE, "constant")),
    ]
    inputs = {name: part.scored(part.ratios.max((2, 3))) for name, part in parts.items()}
    average = calibrate(
        inputs["calibration"].scores,
        inputs["calibration"].mask,
        np.ones(len(good["calibration"]), bool),
        ALPHA,
        band="constant",
    )
    for name, threshold in (("shipped", runs.monitor.threshold), ("on average", average)):
        wrong = inputs["test"].alarmed(threshold)
        rows.append(row(f"inputs, {name}", "600 clean episodes", threshold, wrong))
    kept = json.loads(config.out.read_text())["rows"] if config.out.exists() else []
    former = [r for r in kept if r["name"] == "failure, formerly shipped"]
    if config.former is not None:
        threshold = load_calibrated(config.former, runs.policy.spec.fingerprint)[1]
        where = "200 clean episodes without sensor noise"
        former = [of_failures("formerly shipped", where, threshold)]
    results = {"command": "python -m experiments.studies.quiet", "rows": [*former, *rows]}
    write_results(config.out, results)
    return results


def scored(found: Artifact, episodes: Episodes) -> Scored:
    """By the detector."""
    values = score_episodes(found.detector, episodes.features, episodes.mask)
    mask = np.asarray(episodes.mask)
    return Scored(np.asarray(values, np.float64), mask, np.full(len(mask), -1))


def row(name: str, calibrated_on: str, threshold: Threshold, wrong: np.ndarray) -> dict[str, Any]:
    """What is promised, and what it is on the test episodes."""
    n = threshold.n_calibration
    law = coverage_law(n, threshold.alpha, confidence=threshold.confidence)
    return {
        "name": name,
        "calibrated_on": calibrated_on,
        "band": threshold.band,
        "confidence": threshold.confidence,
        "n": n,
        "rank": threshold.rank,
        "low": 1 - law.high,
        "high": 1 - law.low,
        "false_alarms": {"k": int(wrong.sum()), "n": len(wrong)},
        "detected": None,
        "first_alarm": None,
    }


if __name__ == "__main__":
    enable_cache()
    print(json.dumps(main(tyro.cli(Config)), indent=1))
