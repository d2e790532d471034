"""Which detector warns earliest on the board: linear probes, distances and SAFE's head.

    python -m experiments.exp_board_detector

Fitted on the training episodes of `detection_runs` and scored on its test episodes, which played
no part in any choice. By earliest stop means up to the shortest episode with the same speed word:
five or six inferences for two of the three words. So early, all of them are within each other's
intervals; they come apart later (`roc_auc_at_inference_of_those_running`), where a score per step
beats a summed one. `experiments.detection_bound` says how well it could be done at best.

Tried on folds of the training episodes and left out, none better than the probe: a small
multilayer perceptron on whitened features with dropout, boosted trees on principal components,
tokens one by one, the vision tower, each camera apart, each flow step apart.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float

from experiments.build_board_mist import speed_word
from experiments.detection_runs import CONDITIONS
from mistjax.compilation import enable_cache
from mistjax.detect import Episodes, fit_detector, score_episodes
from mistjax.detect.features import FeatureSpec
from mistjax.detect.from_runs import episodes_from_runs
from mistjax.detect.metrics import bootstrap, peak, roc_auc, summary
from mistjax.detect.registry import training_config
from mistjax.hooks import Tap
from mistjax.rollouts.run import Run, load_run

BOARD_FEATURES = FeatureSpec(
    (Tap("action.resid", None, "action", "mean"), Tap("vlm.resid", None, "text", "mean"))
)
BOARD_PROBE = {"shrinkage": 0.2, "horizon": 15}
SAFE_TRAINING = training_config("safe_mlp", epochs=60, batch_size=64)  # 1500 updates


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared.

    Attributes:
        runs: folder of `detection_runs`.
        train: training episodes of each condition.
        sizes: numbers of training episodes for the learning curve, conditions mixed.
        out: results.
    """

    runs: Path = Path("runs/detection")
    train: int = 800
    sizes: tuple[int, ...] = (100, 200, 400, 800, 1600)
    out: Path = Path("experiments/results/exp_board_detector.json")


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """What is compared on the board, all on the same z-scored features."""
    changes = {"name": "linear_probe", "shrinkage": 0.3, "horizon": 15, "baseline": 1}
    return {
        "linear_probe": ("linear_probe", BOARD_PROBE),
        "linear_probe without clock": ("linear_probe", {"shrinkage": 0.2}),
        "ensemble": ("ensemble", {"members": [{"name": "linear_probe", **BOARD_PROBE}, changes]}),
        "mahalanobis": ("mahalanobis", {}),
        "mahalanobis, not summed": ("mahalanobis", {"accumulate": "none", "ridge": 0.3}),
        "trajectory_length": ("trajectory_length", {}),
        "safe_mlp": ("safe_mlp", {"training": SAFE_TRAINING}),
    }


def main(config: Config) -> dict[str, Any]:
    """Fits on the training runs, scores the test runs once, writes the table and learning curve."""
    runs = {c: load_run(config.runs / f"train_{c}") for c in CONDITIONS}
    train = _join([_first(run, config.train) for run in runs.values()])
    test = _join([load_run(config.runs / f"test_{c}") for c in CONDITIONS])
    result: dict[str, Any] = {
        "train": {"episodes": len(train), "failures": int((~train.success).sum())},
        "test": {"episodes": len(test), "failures": int((~test.success).sum())},
        "features": BOARD_FEATURES.to_json(),
        "detectors": {},
        "linear_probe_by_training_episodes": {},
    }
    order = np.random.default_rng(0).permutation(len(train))
    for size in config.sizes:
        part = train.take(order[:size])
        row = _score(part, test, "linear_probe", BOARD_PROBE)
        result["linear_probe_by_training_episodes"][str(size)] = row["roc_auc"]
        print(size, row["roc_auc"], flush=True)
    for case, (name, options) in cases().items():
        result["detectors"][case] = _score(train, test, name, options)
        print(case, result["detectors"][case], flush=True)
        config.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _first(run: Run, episodes: int) -> Run:
    """The run's first episodes."""
    return dataclasses.replace(run, rows=run.rows[:episodes])


def _join(runs: list[Run]) -> Episodes:
    return episodes_from_runs(runs, BOARD_FEATURES, group=speed_word)


def _score(train: Episodes, test: Episodes, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Metrics on the test episodes, with the AUC's interval, and its value at each inference."""
    detector = fit_detector(name, train, standardised=True, **options)
    scores = np.asarray(score_episodes(detector, test.features, test.mask))
    failed, top = ~test.success, peak(scores, test.earliest_stop)
    low, high = bootstrap(lambda i: roc_auc(top[i], failed[i]), len(test))
    last = scores[np.arange(len(test)), test.earliest_stop - 1]
    curve = {}
    for t in range(0, scores.shape[1], 2):
        running = test.mask[:, t]
        curve[str(t)] = roc_auc(scores[running, t], failed[running])
    return {
        **summary(scores, test),
        "roc_auc_interval": [low, high],
        "roc_auc_halves": _halves(scores, test),
        "roc_auc_at_earliest_stop": roc_auc(last, failed),
        "roc_auc_at_inference_of_those_running": {
            t: value for t, value in curve.items() if np.isfinite(value)
        },
    }


def _halves(scores: Float[np.ndarray, "n t"], test: Episodes) -> list[float]:
    """AUC of the even and the odd seeds, each half by its own, later earliest stop."""
    values = []
    for odd in (0, 1):
        rows = np.flatnonzero(test.seed % 2 == odd)
        task, lengths = test.task_id[rows], test.lengths[rows]
        stop = np.array([lengths[task == k].min() for k in task])
        values.append(roc_auc(peak(scores[rows], stop), ~test.success[rows]))
    return values


if __name__ == "__main__":
    enable_cache()
    print(json.dumps(main(tyro.cli(Config)), indent=1))
