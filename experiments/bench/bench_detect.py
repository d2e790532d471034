"""Detectors on the recorded SAFE data set: AUC, CPU and wall seconds, peak memory, next to the
original's.

`python -m experiments.bench.bench_detect --data FOLDER` where FOLDER holds `dataset.npz` and
`peer/*.json` of the recorded originals, which ran on another machine. Beside them run here, in
turns, on the same split and for the same epochs:

- ours       one head; CPU seconds cover all threads, compilation included
- together   `--together` heads of one split (initialisations) as one vmapped program, per head
- pytorch    `safe_torch`: the recipe in PyTorch, one thread
- floor      its matrix products alone, at this machine's rate, see `detect_floor`

Each runs in a process of its own, so that its peak memory is its own. On a busy machine only CPU
seconds compare, and those only within one run: neighbours empty the caches. Another call replaces
the results of its own detectors and keeps the others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from experiments.bench import safe_torch
from experiments.bench.detect_floor import floor
from experiments.record import write_results

# case -> epochs, original's result file
CASES: dict[str, tuple[int, str]] = {
    "mahalanobis": (0, "small_mahala_csFalse"),
    "euclid_knn": (0, "small_euclid_csFalse"),
    "cosine_knn": (0, "small_cosine_csFalse"),
    "pca_kmeans": (0, "small_pca_kmeans_csFalse"),
    "safe_mlp": (1000, "small_indep"),
    "safe_lstm": (1000, "small_lstm"),
}
Worker = Literal["ours", "together", "pytorch", "floor"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        data: folder with dataset.npz and peer/.
        detectors: cases, see CASES.
        seeds: split and training seeds.
        epochs: of the heads, for all who train here; None takes the source's 1000. The recorded
            original always took 1000: its times are scaled, its AUCs are not.
        together: heads that are trained as one program; 0 leaves this out.
        pytorch: also train the heads in PyTorch.
        out: JSON file of the results.
        worker: run the only case of the only seed in this process and print its result.
    """

    data: Path
    detectors: tuple[str, ...] = tuple(CASES)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int | None = None
    together: int = 8
    pytorch: bool = True
    out: Path = Path("experiments/results/bench_detect.json")
    worker: Worker | None = None


def run_one(config: Config) -> dict[str, float]:
    """Fit and score one detector; the original's settings (batch 64, L2 1e-2, no accumulation for
    distances).
    """
    from mistjax.conformance.safe.baselines import recorded_episodes
    from mistjax.detect import fit_detector, score_episodes, split_tasks
    from mistjax.detect.metrics import summary

    (case,), (seed,) = config.detectors, config.seeds
    episodes = recorded_episodes(config.data)
    split = split_tasks(episodes.task_id, seed)
    training = episodes.take(split.train)
    count = config.together if config.worker == "together" else 1
    epochs = epochs_of(case, config)
    if config.worker == "floor":
        return floor(case, training.dim, int(training.lengths.sum()), epochs)

    def fit(epochs: int) -> list[Callable[[Any], np.ndarray]]:
        if config.worker == "pytorch":
            scores = safe_torch.train(case, training, epochs=epochs, seed=seed)
            return [lambda part: scores(part.features)]
        if epochs:
            detectors = train_heads(case, training, epochs, seed, count)
        else:
            detectors = [fit_detector(case, training, accumulate="none")]
        return [lambda part, d=d: score_episodes(d, part.features, part.mask) for d in detectors]

    wall, cpu = time.perf_counter(), time.process_time()
    fitted = fit(epochs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    auc = {}
    for part in ("val_seen", "val_unseen"):
        rows = episodes.take(getattr(split, part))
        auc[part] = np.mean([summary(scores(rows), rows)["roc_auc"] for scores in fitted])
    return {
        "seen": float(auc["val_seen"]),
        "unseen": float(auc["val_unseen"]),
        "fit_wall_s": wall / count,
        "fit_cpu_s": cpu / count,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def train_heads(case: str, training: Any, epochs: int, seed: int, count: int) -> list[Any]:
    """`count` initialisations of a head, trained as one program."""
    import jax

    from mistjax.detect.methods.safe.heads import SafeLSTM, SafeMLP
    from mistjax.detect.methods.safe.training import train_many
    from mistjax.detect.registry import training_config

    kind = {"safe_mlp": SafeMLP, "safe_lstm": SafeLSTM}[case]
    init, order = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(init, count)
    heads = jax.vmap(lambda key: kind.create(key, training.dim))(keys)
    options = training_config(case, epochs=epochs, batch_size=safe_torch.BATCH)
    heads, _ = train_many(heads, training, options, jax.random.split(order, count))
    jax.block_until_ready(heads)
    return [jax.tree.map(lambda x, i=i: x[i], heads) for i in range(count)]


def epochs_of(case: str, config: Config) -> int:
    """Epochs of a case: 0 for what is not trained."""
    default = CASES[case][0]
    return default if config.epochs is None or not default else config.epochs


def original(data: Path, case: str, seed: int, epochs: int) -> dict[str, float]:
    """The recorded original's numbers, its times scaled to `epochs`; NaN where not recorded. It
    had one thread of a busy machine: its wall time is taken to be its CPU time, as on an idle one.
    """
    full, stem = CASES[case]
    path = data / "peer" / f"{stem}_s{seed}.json"
    if not path.is_file():
        return dict.fromkeys(("seen", "unseen", "fit_wall_s", "fit_cpu_s", "peak_mb"), float("nan"))
    peer = json.loads(path.read_text())
    key, scale = "falert_early_roc_auc/model_val_", epochs / full if full else 1.0
    return {
        "seen": peer["final"][f"{key}seen"],
        "unseen": peer["final"][f"{key}unseen"],
        "fit_wall_s": peer["train_cpu_s"] * scale,
        "fit_cpu_s": peer["train_cpu_s"] * scale,
        "peak_mb": peer["peak_rss_mb"],
    }


def measure(config: Config, case: str, seed: int, worker: Worker) -> dict[str, float]:
    """One worker's numbers, from a process of its own."""
    command = [sys.executable, "-m", "experiments.bench.bench_detect", "--worker", worker]
    command += ["--data", str(config.data), "--detectors", case, "--seeds", str(seed)]
    command += ["--together", str(config.together)]
    command += [] if config.epochs is None else ["--epochs", str(config.epochs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(config: Config) -> dict[str, Any]:
    """Runs every case; prints each number, and writes them with the ratios."""
    found = json.loads(config.out.read_text()) if config.out.exists() else {}
    for case in config.detectors:
        trained = bool(CASES[case][0])
        wanted: dict[Worker, bool] = {
            "ours": True,
            "together": trained and config.together > 0,
            "pytorch": trained and config.pytorch,
            "floor": trained,
        }
        measured: dict[str, list[dict[str, float]]] = {}
        loads = []
        for seed in config.seeds:
            loads.append(round(os.getloadavg()[0], 1))
            results = {who: measure(config, case, seed, who) for who, yes in wanted.items() if yes}
            results["original"] = original(config.data, case, seed, epochs_of(case, config))
            for who, numbers in results.items():
                measured.setdefault(who, []).append(numbers)
                shown = " ".join(f"{name}={value:.3f}" for name, value in numbers.items())
                print(case, seed, who, shown, flush=True)
        found[case] = {
            "epochs": epochs_of(case, config),
            "seeds": list(config.seeds),
            "cores": os.cpu_count(),
            "load_at_each_seed": loads,
            "mean_per_head": {who: mean(numbers) for who, numbers in measured.items()},
            "ratios": ratios(measured),
            "by_seed": measured,
        }
        print(json.dumps({k: v for k, v in found[case].items() if k != "by_seed"}, indent=1))
        write_results(config.out, found)
    return found


def mean(numbers: list[dict[str, float]]) -> dict[str, float]:
    """Means over seeds."""
    return {name: float(np.mean([row[name] for row in numbers])) for name in numbers[0]}


def ratios(measured: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean CPU and wall time of a head relative to the others'; "floor / original" is the least
    that any program could reach here.
    """
    pairs = [(who, peer) for who in ("ours", "together") for peer in ("pytorch", "original")]
    pairs += [("ours", "floor"), ("pytorch", "floor"), ("floor", "original")]
    times = ("fit_cpu_s", "fit_wall_s")
    return {
        f"{who} / {peer}": {t: mean(measured[who])[t] / mean(measured[peer])[t] for t in times}
        for who, peer in pairs
        if who in measured and peer in measured
    }


if __name__ == "__main__":
    settings = tyro.cli(Config)
    if settings.worker:
        print(json.dumps(run_one(settings)))
    else:
        main(settings)
