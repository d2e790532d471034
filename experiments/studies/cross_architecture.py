"""One harness, several architectures: success, detection, attribution, steering and overhead.

    python -m experiments.studies.cross_architecture

The board's pi0 and pi0-FAST in JAX, OpenVLA-OFT and LeRobot's SmolVLA in PyTorch, as far as their
checkpoints are there. SmolVLA runs in LeRobot's environment (docs/lerobot.md): there
`--only SmolVLA` adds its column to the stored result. Tiny policies in simulation: the numbers say
that the harness means the same thing for each of them, and how much of a finding carries over at
this size; they say nothing about robots. See the modules of `experiments.studies.cross` for what is
measured. Interrupt it at will: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from safetensors.numpy import load_file, save_file

from experiments.record import write_results
from experiments.studies.cross.attribution import Maps, agreement, blur_maps, stone_overlap
from experiments.studies.cross.figure import draw
from experiments.studies.cross.overhead import overhead_row
from experiments.studies.cross.scenes import Scene, kept_scenes
from experiments.studies.cross.steering import steering_rows
from experiments.studies.cross.subjects import (
    SUBJECTS,
    Subject,
    detection_row,
    fit_monitor,
    record,
    success_rows,
)
from mistjax.compilation import enable_cache
from mistjax.files import atomic


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is measured.

    Attributes:
        work: recorded runs and the parts of the result.
        results: file of the result.
        figure: file of its figure.
        episodes: paired test episodes of each condition.
        training: training episodes of each condition, for the detectors.
        scenes: seeds that scenes are taken from, two each.
        strengths: of steering.
        repeats: timed inferences.
        only: policies that are measured; columns of the others, and `config`, stay those of
            `results`. None are all. Attributions are compared among policies of one call.
    """

    work: Path = Path("runs/cross_architecture")
    results: Path = Path("experiments/results/cross_architecture.json")
    figure: Path = Path("docs/assets/cross_architecture.png")
    episodes: int = 100
    training: int = 75
    scenes: int = 100
    strengths: tuple[float, ...] = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
    repeats: int = 100
    only: tuple[str, ...] = ()


def measure(subject: Subject, config: Config, scenes: list[Scene]) -> tuple[dict[str, Any], Maps]:
    """Everything about one policy; finished parts are read back."""
    policy = subject.load()
    folder = config.work / f"{subject.name}_{policy.spec.fingerprint[:12]}"
    key = jax.random.key(0)
    training = list(record(policy, folder, "training", config.training).values())
    test = record(policy, folder, "test", config.episodes)
    monitor = fit_monitor(training)
    parts: dict[str, Callable[[], Any]] = {
        "success": lambda: success_rows(test),
        "detection": lambda: detection_row(monitor, list(test.values())),
        "steering": lambda: steering_rows(policy, scenes, config.strengths, key),
        "overhead": lambda: overhead_row(policy, monitor, [s.raw for s in scenes], config.repeats),
    }
    made_with = f"{len(scenes)}_{config.training}"
    counts = {"training": config.training, "test": config.episodes, "scenes": len(scenes)}
    row = {"fingerprint": policy.spec.fingerprint, "counts": counts}
    for name, make in parts.items():
        fresh = name in ("success", "detection")
        row[name] = make() if fresh else _kept(folder / f"{name}_{made_with}.json", make)
    file = folder / f"maps_{made_with}.safetensors"
    if not file.exists():
        with atomic(file) as temporary:
            save_file(blur_maps(policy, monitor, scenes, key), temporary)
    maps = load_file(file)
    row["stone"] = {readout: stone_overlap(maps, scenes, readout) for readout in READOUTS}
    return row, maps


READOUTS = ("action", "score")


def _kept(file: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, from the file if it has been made before."""
    if not file.exists():
        made = json.dumps(make())
        with atomic(file) as temporary:
            temporary.write_text(made)
    return json.loads(file.read_text())


def main(config: Config) -> dict[str, Any]:
    """Measures, writes results and figure, prints the table."""
    if unknown := sorted({*config.only} - {s.name for s in SUBJECTS}):
        raise ValueError(f"no policies are called {unknown}: only takes some of SUBJECTS.")
    kept = json.loads(config.results.read_text()) if config.only else {}
    there = [
        s
        for s in SUBJECTS
        if (s.folder / "config.json").exists() and (not config.only or s.name in config.only)
    ]
    names = [s.name for s in SUBJECTS if s in there or s.name in kept.get("subjects", ())]
    absent = [s.name for s in SUBJECTS if s.name not in names]
    print(f"compared: {names}; without a checkpoint: {absent}", flush=True)
    file = config.work / f"scenes_{config.scenes}.safetensors"
    scenes = kept_scenes(file, config.scenes, first_seed=5_500_000)
    found = {s.name: measure(s, config, scenes) for s in there}
    seeds = np.array([scene.seed for scene in scenes])
    pairs = [
        {
            "pair": [a, b],
            "readout": readout,
            "cameras": agreement(found[a][1], found[b][1], seeds, readout),
        }
        for a, b in itertools.combinations(found, 2)
        for readout in READOUTS
    ]
    settings = {k: str(v) for k, v in dataclasses.asdict(config).items() if k != "only"}
    rows = kept.get("subjects", {}) | {name: row for name, (row, _) in found.items()}
    results = {
        "command": "python -m experiments.studies.cross_architecture",
        "config": kept.get("config") or settings,
        "absent": absent,
        "subjects": {name: rows[name] for name in names},
        "agreement": [pair for pair in kept.get("agreement", ()) if not {*pair["pair"]} & {*found}]
        + pairs,
    }
    write_results(config.results, results)
    draw(results, config.figure)
    print(as_table(results))
    return results


def as_table(results: Mapping[str, Any]) -> str:
    """Markdown: one column a policy."""
    subjects = results["subjects"]

    def interval(found: dict, name: str = "interval", digits: int = 2) -> str:
        low, high = found[name]
        return f"[{low:.{digits}f}, {high:.{digits}f}]"

    lines: dict[str, list[str]] = {}
    for row in subjects.values():
        c = row["counts"]
        text = f"{c['training']} / {c['test']} / {c['scenes']}"
        lines.setdefault("n: training and test, each condition; scenes", []).append(text)
        for condition, f in row["success"].items():
            text = f"{f['k'] / f['n']:.0%} {interval(f)} ({f['k']}/{f['n']})"
            lines.setdefault(f"success, {condition}", []).append(text)
        d = row["detection"]
        for kind, said in (("early", "by earliest stop"), ("full", "whole episodes")):
            text = f"{d[kind]:.2f} {interval(d, f'{kind} interval')}"
            lines.setdefault(f"ROC-AUC {said}", []).append(text)
        for readout, f in row["stone"].items():
            text = f"{f['share']:.2f} {interval(f)}, control {f['control']:.2f}"
            lines.setdefault(f"{readout} map on the stone", []).append(text)
        for f in row["steering"]:
            z = "–" if f["z"] is None else f"{f['z']:.1f}"
            text = f"{f['change'][0]:+.2f} to {f['change'][-1]:+.2f}, rho {f['rho']:.2f}, z {z}"
            lines.setdefault(f"{f['axis']}, {f['recipe']}", []).append(text)
            if f["recipe"] == "value vectors":  # the yardstick is that of both recipes
                low, high = (asked - f["plain"] for asked in f["asking"])
                name = f"{f['axis']}, asked in words"
                lines.setdefault(name, []).append(f"{low:+.2f} to {high:+.2f}")
        ms = row["overhead"]["ms quartiles"]
        text = f"{ms['bare'][1]:.1f} / {ms['monitored'][1]:.1f}"
        lines.setdefault("ms, bare / monitored", []).append(text)
    head = ["| | " + " | ".join(subjects) + " |", "|---" * (1 + len(subjects)) + "|"]
    return "\n".join([*head, *(f"| {name} | {' | '.join(row)} |" for name, row in lines.items())])


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
