"""How soon the shipped monitor of the inputs detects faults in mid-episode, and what it names.

    python -m experiments.studies.faults.record
    python -m experiments.build.board_inputs
    python -m experiments.studies.faults.tables

How it compares with other detectors: `experiments.studies.faults.detectors`. Latency counts from
the onset; the first look that can show a fault is up to three steps after it. An episode that ends
before its onset is left out; one with an alarm before it is counted apart.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.record import write_results
from experiments.studies.events import Scored, detection
from mistjax.compilation import enable_cache
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.fit import evidence, recorded
from mistjax.envs.faults.battery import FAULTS, INPUTS
from mistjax.envs.faults.splits import UNSEEN_KINDS
from mistjax.policies.load import load_policy
from mistjax.rollouts.run import load_run
from mistjax.rollouts.trace import Trace
from mistjax.stats import Rate

NAMES = (*INPUTS, "none")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is read and written.

    Attributes:
        policy: the recorded policy.
        mist: its monitors.
        runs: what `experiments.studies.faults.record` wrote.
        out: the results.
    """

    policy: str = "checkpoints/board_pi0"
    mist: Path = Path("checkpoints/board_mist")
    runs: Path = Path("runs/faults")
    out: Path = Path("experiments/results/faults.json")


@dataclasses.dataclass(frozen=True)
class Watched:
    """One episode: what was recorded, and what the monitor of its inputs said."""

    trace: Trace
    ratios: np.ndarray
    suspect: np.ndarray
    named: np.ndarray


def watch(config: Config, name: str, monitor: Any) -> list[Watched]:
    """The episodes of a run, scored."""
    traces = list(load_run(config.runs / name).traces())
    found = evidence(monitor, recorded(traces))
    ratios, suspect, named = map(np.asarray, (found.ratios, found.suspect, found.named))
    return [
        Watched(t, ratios[i][:n], suspect[i][:n], named[i][:n])
        for i, t in enumerate(traces)
        for n in [len(t.chunks)]
    ]


def scored(episodes: Sequence[Watched]) -> Scored:
    """Largest ratios, padded."""
    longest = max(len(e.ratios) for e in episodes)
    lengths = np.array([len(e.ratios) for e in episodes])
    peaks = [e.ratios.max((1, 2)) for e in episodes]
    infos = [e.trace.info for e in episodes]
    return Scored(
        np.stack([np.pad(x, (0, longest - len(x))) for x in peaks]),
        np.arange(longest)[None] < lengths[:, None],
        np.array([info["fault_onset"] if info.get("fault") else -1 for info in infos]),
        steps=4,
    )


def right(fault: str) -> tuple[str, ...]:
    """The answers that are right: a camera for what changes the scene, nobody for what changes the
    motion."""
    where = FAULTS[fault][0]
    if where == "scene":
        return ("front", "wrist")
    return ("none",) if where in ("action", "push") else (where,)


def naming(episodes: Sequence[Watched], threshold: float) -> dict[str, list[tuple[str, str]]]:
    """Method -> (fault, name) of every episode whose first alarm is not before its onset."""
    found = collections.defaultdict(list)
    for e in episodes:
        info = e.trace.info
        if info.get("fault") is None:
            continue
        hits = np.flatnonzero(e.ratios.max((1, 2)) > threshold)
        if not len(hits) or hits[0] < -(-info["fault_onset"] // 4):
            continue
        look, fault = hits[0], info["fault"]
        by_input = e.ratios[look]
        found["novelty with cross-check"].append((fault, NAMES[e.named[look]]))
        found["novelty without cross-check"].append((fault, NAMES[by_input.max(1).argmax()]))
        found["level only"].append((fault, NAMES[by_input[:, 0].argmax()]))
        found["change only"].append((fault, NAMES[by_input[:, 1:].max(1).argmax()]))
        draw = np.random.default_rng(e.trace.seed).integers(len(NAMES))
        found["chance"].append((fault, NAMES[draw]))
    return dict(found)


def groups_of(run: str, fault: str) -> tuple[str, ...]:
    """Where a fault is reported: in its mixture, by place and by what of it may have been looked
    at, and by its name.
    """
    where = FAULTS[fault][0]
    if not run.startswith("board") and where in INPUTS:  # weak ones, beside the mixtures
        return (run,)
    if fault in UNSEEN_KINDS:
        place = f"{where}, unseen kinds"
    else:
        place = f"{where}, unseen strengths" if run.endswith("strengths") else where
    places = (where,) if where == "push" else (place, f"{fault} ({run})")
    return (run, *places) if run.startswith("board") else (place, fault)


def rate(k: int, n: int) -> dict[str, Any]:
    return {"k": int(k), "n": int(n), "text": str(Rate(int(k), int(n)))}


def main(config: Config) -> dict[str, Any]:
    """Scores everything and writes the tables."""
    policy = load_policy(config.policy)
    monitor = load_inputs(config.mist, policy.spec.fingerprint)
    threshold = float(monitor.threshold.upper[0])
    clean = watch(config, "test/clean", monitor)
    groups: dict[str, list[Watched]] = collections.defaultdict(list)
    for folder in sorted((config.runs / "test").iterdir()):
        if folder.name == "clean" or not (folder / "episodes.parquet").exists():
            continue
        for e in watch(config, f"test/{folder.name}", monitor):
            if (fault := e.trace.info.get("fault")) is not None:
                for group in groups_of(folder.name, fault):
                    groups[group].append(e)
    quiet = scored(clean)
    alarms = quiet.alarmed(monitor.threshold)
    named = {
        group: {
            method: rate(sum(name in right(fault) for fault, name in answers), len(answers))
            for method, answers in naming(episodes, threshold).items()
        }
        for group, episodes in groups.items()
    }
    results = {
        "command": "python -m experiments.studies.faults.tables",
        "threshold": monitor.threshold.describe("clean"),
        "shipped_false_alarms": rate(alarms.sum(), len(clean)),
        "episodes": {
            "clean test": len(clean),
            "faulty test": len({id(e) for episodes in groups.values() for e in episodes}),
        },
        "detection": {
            group: detection(scored(episodes), quiet, monitor.threshold)
            for group, episodes in groups.items()
        },
        "naming": named,
    }
    write_results(config.out, results)
    return results


def summary(results: Mapping[str, Any]) -> str:
    """Naming by group, for the terminal."""
    lines = [f"clean: {results['shipped_false_alarms']['text']} alarm"]
    lines += [
        f"{group}: " + ", ".join(f"{method} {found['text']}" for method, found in methods.items())
        for group, methods in results["naming"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    enable_cache()
    print(summary(main(tyro.cli(Config))))
