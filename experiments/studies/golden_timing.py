"""When failures are detected on 400 synthetic rollouts whose true onsets are known.

    python -m experiments.studies.golden_timing --data FOLDER

FOLDER holds `dataset.npz`, the recordings behind `better_than_safe`: hidden
states, probabilities and entropies of the tokens, and the onset of every failure. The question is
SAFE's, *the episode fails*. Ten task splits; a threshold is that of the successes among seen tasks
(at most 10% alarm, on average over calibrations), everything is measured on unseen ones. Of a
failure, an alarm before the onset is counted apart. Hide-and-Seek has 32 units, windows of four
steps and 100 epochs here. Of SAFE's heads, which take minutes, `better_than_safe` has the AUC.

There are no pictures, states, instructions, chunks, flows or perturbed rollouts in these
recordings, and no policy that could be run again: monitors of the inputs, GUARD, chunk overlap,
velocity disagreement and the contrast-set probe cannot run on them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.record import write_results
from experiments.studies.better_than_safe import GOLDEN, fixed
from experiments.studies.events import Scored, detection
from mistjax.compilation import enable_cache
from mistjax.detect import Episodes, calibrate, fit_detector, score_episodes, split_tasks
from mistjax.detect.metrics import summary
from mistjax.detect.registry import training_config
from mistjax.untrusted import read_npz

SPLITS = range(10)
ALPHA = 0.1


def seeking(seed: int) -> dict[str, Any]:
    """Options of Hide-and-Seek."""
    training = training_config("hide_and_seek", epochs=100)
    return {"training": training, "seed": seed, "window": 4, "hidden": 32}


TOKENS = {
    name: (name, fixed())
    for name in ("max_token_prob", "avg_token_prob", "max_token_entropy", "avg_token_entropy")
}
CASES: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    **{name: GOLDEN[name] for name in ("ensemble", "probe within tasks", "probe of changes")},
    **{name: GOLDEN[name] for name in ("mahalanobis", "euclid_knn")},
    "hide_and_seek": ("hide_and_seek", seeking),
    **TOKENS,
    "clock only": ("trajectory_length", fixed()),
}
LENGTH, BLIND = "length only", "onset-blind"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        data: folder with the recordings.
        cases: rows; all by default.
        out: results.
    """

    data: Path
    cases: tuple[str, ...] = (*CASES, LENGTH, BLIND)
    out: Path = Path("experiments/results/golden_timing.json")


def main(config: Config) -> dict[str, Any]:
    """Fits what is missing, and writes everything."""
    from mistjax.conformance.safe.baselines import recorded_episodes

    hidden = recorded_episodes(config.data)
    data = read_npz(config.data / "dataset.npz")
    cuts = np.cumsum(data["lengths"])[:-1]
    tokens = [
        np.split(data[f"token_{what}"].astype(np.float32), cuts) for what in ("prob", "entropy")
    ]
    words = Episodes.from_sequences(
        [np.concatenate(pair, axis=1) for pair in zip(*tokens, strict=True)],
        data["success"],
        data["task_id"],
    )
    results: dict[str, Any] = {"rows": {}}
    if config.out.exists():
        results = json.loads(config.out.read_text())
    for case in config.cases:
        found = results["rows"].setdefault(case, {})
        for seed in SPLITS:
            if str(seed) not in found:
                episodes = words if case in TOKENS else hidden
                found[str(seed)] = measure(case, episodes, data["onset"], seed)
        results["command"] = "python -m experiments.studies.golden_timing --data FOLDER"
        write_results(config.out, results)
        areas = [row["auc_by_earliest_stop"] for row in found.values()]
        print(case, f"{np.mean(areas):.3f} ± {np.std(areas, ddof=1):.3f}", flush=True)
    return results


def measure(case: str, episodes: Episodes, onset: np.ndarray, seed: int) -> dict[str, Any]:
    """One detector on one split."""
    split = split_tasks(episodes.task_id, seed)
    scores = scorer(case, episodes.take(split.train), seed)
    seen, unseen = (episodes.take(rows) for rows in (split.val_seen, split.val_unseen))
    threshold = calibrate(scores(seen), seen.mask, seen.success, ALPHA, band="constant")
    found = scores(unseen)
    failed = ~np.asarray(unseen.success)
    all_of = Scored(found, np.asarray(unseen.mask), onset[split.val_unseen])
    quiet = all_of[~failed].alarmed(threshold)
    timed = detection(all_of[failed], all_of[~failed], threshold)
    del timed["auc_by_earliest_stop"], timed["within_10_steps"]  # of all tasks as if they were one
    return timed | {
        "auc_by_earliest_stop": summary(found, unseen)["roc_auc"],
        "false_alarms": int(quiet.sum()),
        "successes": len(quiet),
    }


def scorer(case: str, train: Episodes, seed: int) -> Callable[[Episodes], np.ndarray]:
    """Scores of episodes by a fitted detector, or by a control without one."""
    if case == LENGTH:
        return lambda e: np.broadcast_to(e.lengths[:, None], e.mask.shape).astype(float)
    if case == BLIND:
        return lambda e: np.random.default_rng(seed).random(e.mask.shape)
    name, options = CASES[case]
    z_scored = name == "hide_and_seek"  # the others as in `better_than_safe`
    detector = fit_detector(name, train, standardised=z_scored, **options(seed))
    return lambda e: np.asarray(score_episodes(detector, e.features, e.mask), np.float64)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
