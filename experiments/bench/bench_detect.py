"""Detectors on the recorded SAFE data set: AUC, CPU and wall seconds, peak memory, next to the
original's.

`python -m experiments.bench.bench_detect --data FOLDER` where FOLDER holds `dataset.npz` and
`peer/*.json` of the recorded originals. Each detector runs in its own process, so that its peak
memory is its own. CPU seconds compare fairly on a busy machine, wall seconds do not; compilation is
included.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

# name -> (registered detector, options, epochs, original's result file)
CASES: dict[str, tuple[str, int, str]] = {
    "mahalanobis": ("mahalanobis", 0, "small_mahala_csFalse"),
    "euclid_knn": ("euclid_knn", 0, "small_euclid_csFalse"),
    "cosine_knn": ("cosine_knn", 0, "small_cosine_csFalse"),
    "pca_kmeans": ("pca_kmeans", 0, "small_pca_kmeans_csFalse"),
    "safe_mlp": ("safe_mlp", 1000, "small_indep"),
    "safe_lstm": ("safe_lstm", 1000, "small_lstm"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        data: folder with dataset.npz and peer/.
        detectors: cases, see CASES.
        seeds: split and training seeds.
        out: CSV with the table.
        worker: run the only case of the only seed in this process and print its result.
    """

    data: Path
    detectors: tuple[str, ...] = tuple(CASES)
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = Path("runs/bench_detect.csv")
    worker: bool = False


def run_one(config: Config) -> dict[str, float]:
    """Fit and score one detector; the original's settings (batch 64, L2 1e-2, no accumulation for
    distances).
    """
    from mistjax.detect import fit_detector, score_episodes, split_tasks
    from mistjax.detect.conformance.baselines import recorded_episodes
    from mistjax.detect.metrics import summary
    from mistjax.detect.registry import training_config

    (case,), (seed,) = config.detectors, config.seeds
    name, epochs, _ = CASES[case]
    episodes = recorded_episodes(config.data)
    split = split_tasks(episodes.task_id, seed)
    options: dict[str, Any] = {"accumulate": "none"}
    if epochs:
        training = training_config(name, epochs=epochs, batch_size=64)
        options = {"training": training, "seed": seed}
    wall, cpu = time.perf_counter(), time.process_time()
    detector = fit_detector(name, episodes.take(split.train), **options)
    fitted = time.perf_counter() - wall, time.process_time() - cpu
    auc = {}
    for part in ("val_seen", "val_unseen"):
        rows = episodes.take(getattr(split, part))
        auc[part] = summary(score_episodes(detector, rows.features, rows.mask), rows)["roc_auc"]
    return {
        "seen": auc["val_seen"],
        "unseen": auc["val_unseen"],
        "fit_wall_s": fitted[0],
        "fit_cpu_s": fitted[1],
        "total_cpu_s": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def original(data: Path, stem: str, seed: int) -> dict[str, float]:
    """The original's numbers for the same case, NaN where not recorded."""
    path = data / "peer" / f"{stem}_s{seed}.json"
    if not path.is_file():
        return dict.fromkeys(("seen", "unseen", "fit_cpu_s", "peak_mb"), float("nan"))
    peer = json.loads(path.read_text())
    key = "falert_early_roc_auc/model_val_"
    return {
        "seen": peer["final"][f"{key}seen"],
        "unseen": peer["final"][f"{key}unseen"],
        "fit_cpu_s": peer["train_cpu_s"],
        "peak_mb": peer["peak_rss_mb"],
    }


def main(config: Config) -> list[dict[str, object]]:
    """Run every case in its own process, print and write the table."""
    rows = []
    for case in config.detectors:
        for seed in config.seeds:
            command = [sys.executable, "-m", "experiments.bench.bench_detect", "--worker"]
            command += ["--data", str(config.data), "--detectors", case, "--seeds", str(seed)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            ours = json.loads(done.stdout.splitlines()[-1])
            theirs = original(config.data, CASES[case][2], seed)
            row = {"detector": case, "seed": seed, **ours}
            row |= {f"original_{k}": v for k, v in theirs.items()}
            rows.append(row)
            print(
                "  ".join(
                    f"{k}={v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()
                )
            )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(rows[0])] + [",".join(str(v) for v in row.values()) for row in rows]
    config.out.write_text("\n".join(lines) + "\n")
    for case in config.detectors:
        part = [r for r in rows if r["detector"] == case]
        unseen = [np.mean([r[k] for r in part]) for k in ("unseen", "original_unseen")]
        print(f"{case}: unseen AUC {unseen[0]:.3f} (original {unseen[1]:.3f}), {len(part)} seeds")
    return rows


if __name__ == "__main__":
    settings = tyro.cli(Config)
    if settings.worker:
        print(json.dumps(run_one(settings)))
    else:
        main(settings)
