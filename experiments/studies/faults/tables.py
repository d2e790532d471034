"""How soon faults in mid-episode are detected, and whether the right input is named.

    python -m experiments.studies.faults.record
    python -m experiments.build.board_inputs
    python -m experiments.studies.faults.tables

Every detector is calibrated in the same way, on clean episodes with sensor noise that it was not
fitted to: at most 10% of clean episodes with any alarm, for 95% of calibrations. Nothing is fitted
to a fault, except the shipped failure score (to table texture, without sensor noise). Latency
counts from the onset; the first look that can show a fault is up to three steps after it. An
episode that ends before its onset is left out; one with an alarm before it is counted apart.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from mistjax.compilation import enable_cache
from mistjax.detect.artifact import load_detector
from mistjax.detect.calibration.conformal import calibrate
from mistjax.detect.data import Episodes
from mistjax.detect.detector import score_episodes
from mistjax.detect.inputs import Input
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.fit import evidence, recorded
from mistjax.detect.registry import fit_detector
from mistjax.envs.faults.battery import FAULTS, INPUTS
from mistjax.envs.faults.splits import UNSEEN_KINDS
from mistjax.policies.load import load_policy
from mistjax.rollouts.run import load_run
from mistjax.rollouts.trace import Trace
from mistjax.stats import Rate

NAMES = (*INPUTS, "none")
Scores = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is read and written.

    Attributes:
        policy: the recorded policy.
        mist: its monitors.
        runs: what `experiments.studies.faults.record` wrote.
        out: the results.
        alpha: bound on the chance of any alarm in a clean episode.
        confidence: share of calibrations for which it holds.
    """

    policy: str = "checkpoints/board_pi0"
    mist: Path = Path("checkpoints/board_mist")
    runs: Path = Path("runs/faults")
    out: Path = Path("experiments/results/faults.json")
    alpha: float = 0.1
    confidence: float = 0.95


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


def ratio_of(*streams: int) -> Callable[[Watched], np.ndarray]:
    return lambda e: e.ratios[:, :, list(streams)].max((1, 2))


def chunk_overlap(e: Watched) -> np.ndarray:
    """Mean distance of the steps that this chunk and the last one both plan."""
    chunks, done = e.trace.chunks, 4
    apart = np.linalg.norm(chunks[1:, :-done] - chunks[:-1, done:], axis=-1).mean(1)
    return np.concatenate([[0.0], apart])


def velocity_disagreement(e: Watched) -> np.ndarray:
    """Spread of the velocities over the flow steps, over their mean length."""
    v = e.trace.aux["velocity"].astype(np.float64)
    spread = np.linalg.norm((v - v.mean(1, keepdims=True)).reshape(*v.shape[:2], -1), axis=-1)
    return spread.mean(1) / np.linalg.norm(v.reshape(*v.shape[:2], -1), axis=-1).mean(1)


def clock(e: Watched) -> np.ndarray:
    """Control: how long the episode has been going on."""
    return np.arange(len(e.trace.chunks), dtype=float)


def blind(e: Watched) -> np.ndarray:
    """Control: numbers that know nothing."""
    return np.random.default_rng(e.trace.seed).random(len(e.trace.chunks))


def detector_scores(detector: Any, reads: Input) -> Callable[[Watched], np.ndarray]:
    """A detector of the failure kind, one episode at a time."""

    def score(e: Watched) -> np.ndarray:
        values = reads.recorded(e.trace)[None]
        return np.asarray(score_episodes(detector, values, np.ones(values.shape[:2], bool)))[0]

    return score


def detectors(config: Config, policy: Any, fitting: Sequence[Watched]) -> dict[str, Any]:
    """All scores by name."""
    shipped = load_detector(config.mist, policy.spec.fingerprint)
    traces = [e.trace for e in fitting]
    episodes = Episodes.from_sequences(
        [shipped.reads.recorded(t) for t in traces],
        [t.success for t in traces],
        [0 for _ in traces],
        [t.seed for t in traces],
    )
    return {
        "inputs, level and change": ratio_of(0, 1, 2),
        "inputs, level": ratio_of(0),
        "inputs, change": ratio_of(1, 2),
        "hidden states, Mahalanobis": detector_scores(
            fit_detector("mahalanobis_gate", episodes), shipped.reads
        ),
        "failure score (SAFE-MLP, shipped)": detector_scores(shipped.detector, shipped.reads),
        "chunk overlap": chunk_overlap,
        "velocity disagreement": velocity_disagreement,
        "clock only": clock,
        "onset-blind": blind,
    }


def limit(scores: Scores, config: Config) -> float:
    """The threshold of whole clean episodes."""
    longest = max(map(len, scores))
    mask = np.arange(longest)[None] < np.array([len(s) for s in scores])[:, None]
    values = np.stack([np.pad(s, (0, longest - len(s))) for s in scores])
    found = calibrate(
        values,
        mask,
        np.ones(len(values), bool),
        config.alpha,
        band="constant",
        confidence=config.confidence,
    )
    return float(found.upper[0])


def detection(clean: Scores, faulty: Scores, onsets: Sequence[int], threshold: float) -> dict:
    """One detector on one kind of fault."""
    early = missed = soon = total = 0
    latency, after = [], []
    for scores, onset in zip(faulty, onsets, strict=True):
        first = -(-onset // 4)
        if first >= len(scores):
            continue
        total += 1
        if (scores[:first] > threshold).any():
            early += 1
            continue
        after.append(scores[first:])
        hits = np.flatnonzero(scores[first:] > threshold)
        missed += int(not len(hits))
        if len(hits):
            latency.append(4 * (first + hits[0]) - onset)
            soon += latency[-1] <= 10
    return {
        "n": total,
        "early": early,
        "missed": int(missed),
        "within_10_steps": int(soon),
        "median_latency_steps": float(np.median(latency)) if latency else None,
        "auc_per_look": auc(np.concatenate(after), np.concatenate(clean)) if after else None,
    }


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    order = np.sort(negative)
    below = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(below.mean() / 2 / len(order))


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
    fitting, calibration, clean = (
        watch(config, f"{name}/clean", monitor) for name in ("fitting", "calibration", "test")
    )
    groups: dict[str, list[Watched]] = collections.defaultdict(list)
    for folder in sorted((config.runs / "test").iterdir()):
        if folder.name == "clean" or not (folder / "episodes.parquet").exists():
            continue
        for e in watch(config, f"test/{folder.name}", monitor):
            if (fault := e.trace.info.get("fault")) is not None:
                for group in groups_of(folder.name, fault):
                    groups[group].append(e)
    table = {}
    for name, score in detectors(config, policy, fitting).items():
        at = limit([score(e) for e in calibration], config)
        quiet = [score(e) for e in clean]
        table[name] = {
            "false_alarms": rate(sum((s > at).any() for s in quiet), len(quiet)),
            "alarms_per_clean_episode": float(np.mean([(s > at).sum() for s in quiet])),
            "by_group": {
                group: detection(
                    quiet,
                    [score(e) for e in episodes],
                    [e.trace.info["fault_onset"] for e in episodes],
                    at,
                )
                for group, episodes in groups.items()
            },
        }
        print(name, table[name]["false_alarms"]["text"], flush=True)
    named = {
        group: {
            method: rate(sum(name in right(fault) for fault, name in answers), len(answers))
            for method, answers in naming(episodes, threshold).items()
        }
        for group, episodes in groups.items()
    }
    results = {
        "command": "python -m experiments.studies.faults.tables",
        "threshold": monitor.threshold.describe().replace("successful", "clean"),
        "shipped_false_alarms": rate(
            sum((e.ratios.max((1, 2)) > threshold).any() for e in clean), len(clean)
        ),
        "episodes": {
            "fitting": len(fitting),
            "calibration": len(calibration),
            "clean test": len(clean),
            "faulty test": len({id(e) for episodes in groups.values() for e in episodes}),
        },
        "detectors": table,
        "naming": named,
    }
    config.out.write_text(json.dumps(results, indent=1) + "\n")
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
