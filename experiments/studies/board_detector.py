"""Which detector warns earliest on the board: linear probes, distances and SAFE's head.

    python -m experiments.studies.board_detector

Fitted on the training episodes of `detection_runs` and scored on its test episodes, which played
no part in any choice. By earliest stop means up to the shortest episode with the same speed word:
after four, seven or twelve inferences. So early, all of them but the length of the trajectory are
within each other's intervals; they come apart later (`roc_auc_at_inference_of_those_running`),
where a score per step beats a summed one. `experiments.studies.detection_bound` says how well it
could be done at best.

More sites, learning inside each appearance, and mixing kinds of detector are among the cases, and
are no better. Tried on folds of the training episodes and left out, none better than the probe: a
small multilayer perceptron on whitened features with dropout, boosted trees on principal
components, tokens one by one, one site or one camera alone, each flow step apart, the spread
between the flow steps beside their mean.

A finished case is kept, so an interrupted call goes on; delete the results to begin anew.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Float

from experiments.build.board_mist import speed_word
from experiments.build.detection_runs import CONDITIONS
from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.detect import Episodes, fit_detector, score_episodes
from mistjax.detect.from_runs import episodes_from_runs
from mistjax.detect.inputs import Input
from mistjax.detect.metrics import peak, roc_auc, summary
from mistjax.detect.registry import training_config
from mistjax.hooks import Tap
from mistjax.rollouts.run import Run, load_run
from mistjax.stats import bootstrap

BOARD_FEATURES = Input.of_taps(
    Tap("action.resid", None, "action", "mean"), Tap("vlm.resid", None, "text", "mean")
)
FOUR_SITES = Input.of_taps(
    *BOARD_FEATURES.taps,
    Tap("vlm.resid", None, "image", "mean"),
    Tap("vision.resid", None, "image", "mean"),
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
    out: Path = Path("experiments/results/board_detector.json")


@dataclasses.dataclass(frozen=True)
class Case:
    """A detector, its options and what it reads.

    Attributes:
        name, options: of `fit_detector`.
        features: taps of the runs.
        by_appearance: tasks in training are speed words of one appearance, not speed words.
    """

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    features: Input = BOARD_FEATURES
    by_appearance: bool = False


def cases() -> dict[str, Case]:
    """What is compared on the board, all on z-scored features."""
    plain = {"shrinkage": 0.2}
    changes = {"name": "linear_probe", "shrinkage": 0.3, "horizon": 15, "baseline": 1}
    distance = {"accumulate": "none", "ridge": 0.3}
    clocked = {"name": "linear_probe", **BOARD_PROBE}
    kinds = [{"name": "linear_probe", **plain}, {"name": "mahalanobis", **distance}]
    return {
        "linear_probe": Case("linear_probe", BOARD_PROBE),
        "linear_probe without clock": Case("linear_probe", plain),
        "linear_probe on four sites": Case("linear_probe", plain, FOUR_SITES),
        "linear_probe within appearances": Case(
            "linear_probe", {**plain, "within_tasks": True}, by_appearance=True
        ),
        "ensemble": Case("ensemble", {"members": [clocked, changes]}),
        "ensemble with mahalanobis": Case("ensemble", {"members": kinds}),
        "mahalanobis": Case("mahalanobis"),
        "mahalanobis, not summed": Case("mahalanobis", distance),
        "trajectory_length": Case("trajectory_length"),
        "safe_mlp": Case("safe_mlp", {"training": SAFE_TRAINING}),
    }


def main(config: Config) -> dict[str, Any]:
    """Fits what is missing on the training runs, scores the test runs; table and learning curve."""
    runs = {c: load_run(config.runs / f"train_{c}") for c in CONDITIONS}
    training = [_first(run, config.train) for run in runs.values()]
    testing = [load_run(config.runs / f"test_{c}") for c in CONDITIONS]
    train, test = _join(training), _join(testing)
    curve, detectors = "linear_probe_by_training_episodes", {}
    result: dict[str, Any] = {
        "train": {"episodes": len(train), "failures": int((~train.success).sum())},
        "test": {"episodes": len(test), "failures": int((~test.success).sum())},
        "perturbation": testing[-1].config["perturbation"],
        "features": BOARD_FEATURES.to_json(),
        "detectors": detectors,
        curve: {},
    }
    if config.out.exists():
        found = json.loads(config.out.read_text())
        detectors |= {name: row for name, row in found["detectors"].items() if name in cases()}
        result[curve] = found[curve]
    order = np.random.default_rng(0).permutation(len(train))
    for size in config.sizes:
        if str(size) not in result[curve]:
            row = _score(train.take(order[:size]), test, cases()["linear_probe"])
            result[curve][str(size)] = row["roc_auc"]
            print(size, row["roc_auc"], flush=True)
    for name, case in cases().items():
        if name in detectors:
            continue
        seen, held = train, test
        if case.features != BOARD_FEATURES:
            seen, held = _join(training, case.features), _join(testing, case.features)
        if case.by_appearance:
            appearance = np.repeat(
                np.arange(len(training)), [len(run.finished) for run in training]
            )
            seen = dataclasses.replace(seen, task_id=seen.task_id * len(training) + appearance)
        detectors[name] = _score(seen, held, case)
        print(name, detectors[name], flush=True)
        write_results(config.out, result)
    return result


def _first(run: Run, episodes: int) -> Run:
    """The run's first episodes."""
    return dataclasses.replace(run, rows=run.rows[:episodes])


def _join(runs: list[Run], features: Input = BOARD_FEATURES) -> Episodes:
    return episodes_from_runs(runs, features, group=speed_word)


def _score(train: Episodes, test: Episodes, case: Case) -> dict[str, Any]:
    """Metrics on the test episodes, with the AUC's interval, and its value at each inference."""
    detector = fit_detector(case.name, train, standardised=True, **case.options)
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
