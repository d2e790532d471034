"""Builds the shipped monitor and remedy of the board policy.

    python -m experiments.studies.faults.record --purposes fitting calibration
    python -m experiments.build.board_mist

1. Records episodes with and without the perturbation, each purpose on seeds of its own.
2. Trains every detector of `detectors`, keeps the one with the best ROC-AUC by earliest stop on the
   tuning episodes, and calibrates it on clean episodes with sensor noise, for 95% of calibrations:
   the promise is about episodes without the perturbation, which is to raise the alarm. How that
   compares with other thresholds: `experiments/studies/quiet.py`.
3. Makes directions: concepts from value vectors ("slow" - "quick", ...), success - failure from
   recorded activations, and from the perturbed appearance to the nominal one in the vision tower:
   as a difference of means, and as an affine map (`steer.affine`).
4. Tries each of `TRIED` at the alarms of the tuning seeds, and gives each cause the one that
   repaired most there, net of what it broke; none where nothing helped. Why these:
   `experiments/studies/repair.py`.

Interrupt it at will: what is recorded is kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import tyro

from experiments.studies.known_change import PERTURBATION
from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.detect.calibration.runs import calibrate_detector
from mistjax.detect.training import train_detector
from mistjax.envs.board.expert import expert_observations
from mistjax.hooks import Tap
from mistjax.policies import PiPolicy
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.recover.artifact import RemedyConfig, load_monitor, make_remedy, save_remedy
from mistjax.recover.mist import MistPolicy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.run import Run, load_run
from mistjax.rollouts.trace import Trace
from mistjax.steer.affine import AffineMap, affine_map
from mistjax.steer.artifact import SteeringArtifact, save_steering
from mistjax.steer.build import BOARD_CONCEPTS, BOARD_OPPOSITES, build_vectors
from mistjax.steer.groups import observation_group
from mistjax.steer.vectors import SteeringVector, difference_of_means

VECTOR_TAPS = (
    Tap("action.resid", None, "action", "mean"),
    Tap("vlm.resid", None, "text", "mean"),
    Tap("vlm.resid", None, "image", "mean"),
)
VISION_TAP = Tap("vision.resid", None, "image")
TRIED = (("look, mean", 2.0), ("look, affine", 1.0))
TAPS = (
    Tap("action.resid", (-1,), "action", "mean"),
    Tap("vlm.resid", (-1,), "text", "mean"),
    *VECTOR_TAPS,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is recorded, and what is tried.

    Attributes:
        policy: the bare policy.
        out: artefact folder.
        work: recorded runs.
        faults: what `experiments.studies.faults.record` wrote, for the threshold.
        perturbation: what the monitor is for; None takes the demo's.
        episodes: recorded for each purpose and condition.
        appearances: expert episodes that show both appearances.
        tuning: episodes of each trial of a direction.
        alpha: bound on the chance of any alarm in a successful nominal episode.
        confidence: share of calibrations for which it holds.
        detectors: names in the registry.
        cap: largest change of an action, as a share of its range.
    """

    policy: Path = SHIPPED / "board_pi0"
    out: Path = SHIPPED / "board_mist"
    work: Path = Path("runs/board_mist")
    faults: Path = Path("runs/faults")
    perturbation: dict[str, float] | None = None
    episodes: int = 200
    appearances: int = 100
    tuning: int = 80
    alpha: float = 0.1
    confidence: float = 0.95
    detectors: tuple[str, ...] = ("safe_mlp", "mahalanobis")
    cap: float = 0.5


def speed_word(trace: Trace) -> str:
    """Episodes with the same speed word have similar lengths: what counts as one task."""
    return json.loads(trace.task)["speed"]


def record(policy: PiPolicy, config: Config, purpose: str, first_seed: int) -> list[Run]:
    """Nominal and perturbed episodes for one purpose."""
    conditions = (
        ("nominal", {}, first_seed),
        ("perturbed", config.perturbation, first_seed + 50_000),
    )
    return [
        collect(
            policy,
            config.work / f"{purpose}_{name}",
            episodes=config.episodes,
            first_seed=seed,
            perturbation=perturbation,
            taps=TAPS,
            num_envs=16,
        )
        for name, perturbation, seed in conditions
    ]


def build_detector(config: Config, training, tuning) -> dict:
    """Trains, selects and calibrates; returns held-out metrics of all detectors."""
    metrics = {}
    for name in config.detectors:
        folder = config.work / "detectors" / name
        train_detector(training, folder, name=name, group=speed_word, folds=0)
        found = calibrate_detector(folder, tuning, alpha=config.alpha, group=speed_word)
        metrics[name] = dict(found.metrics)
        print(f"{name}: held-out {metrics[name]}", flush=True)
    best = max(metrics, key=lambda name: metrics[name]["roc_auc"])
    train_detector(training, config.out, name=best, group=speed_word, folds=0)
    found = calibrate_detector(
        config.out,
        [load_run(config.faults / name / "clean") for name in ("calibration", "fitting")],
        alpha=config.alpha,
        confidence=config.confidence,
        group=speed_word,
    )
    print(f"kept {best}. {found.describe()}", flush=True)
    return metrics


def appearance_directions(
    policy: Policy, perturbation: dict[str, float], seeds: Sequence[int]
) -> dict[str, SteeringVector | AffineMap]:
    """From the perturbed appearance to the nominal one: the same situations, seen both ways."""
    nominal = expert_observations(seeds)
    perturbed = expert_observations(seeds, perturbation=perturbation)
    key, tap = jax.random.key(0), dataclasses.replace(VISION_TAP, reduce="mean")
    towards, away = (observation_group(policy, raw, tap, key) for raw in (nominal, perturbed))
    conditions = {"towards": "nominal", "away": perturbation}
    return {
        "look, mean": difference_of_means(
            towards, away, tap, policy.spec, conditions=conditions
        ).at_layers(0),
        "look, affine": affine_map(
            policy, nominal, perturbed, VISION_TAP, key, conditions=conditions
        ),
    }


def directions(policy: Policy, config: Config, perturbed: Run) -> SteeringArtifact:
    """Everything there is to try: concepts, success - failure, and away from the appearance."""
    found = build_vectors(
        policy, BOARD_CONCEPTS, opposites=BOARD_OPPOSITES, run=perturbed, taps=VECTOR_TAPS, first=6
    )
    assert config.perturbation is not None
    seeds = range(1_200_000, 1_200_000 + config.appearances)
    more = appearance_directions(policy, config.perturbation, seeds)
    return dataclasses.replace(found, directions={**found.directions, **more})


def trial(policy, config: Config, found: SteeringArtifact, name: str, strength: float) -> Run:
    """The tuning seeds with one direction for every cause."""
    causes = {cause: (name, strength) for cause in (*policy.config.image_keys, "text", "state")}
    remedy = RemedyConfig(cap=config.cap)
    steering = dataclasses.replace(found, causes=causes)
    monitor = load_monitor(config.out, policy)
    mist = MistPolicy(policy, monitor, make_remedy(policy, steering, remedy), "trial")
    return collect(
        mist,
        config.work / "trials" / name.replace(", ", "_"),
        episodes=config.tuning,
        first_seed=3_000_000,
        perturbation=config.perturbation,
        aux=("cause",),
        num_envs=16,
    )


def choose(
    policy: PiPolicy, found: SteeringArtifact, bare: Run, trials: dict[tuple[str, float], Run]
) -> tuple[dict[str, tuple[str, float] | None], list[dict]]:
    """For each cause the direction that repaired most net of what it broke, and the counts.

    An episode counts for the cause that the monitor named at its first alarm. All directions of a
    table are of one kind at one site, so the kind and site with the best total win.
    """
    outcome = {row["seed"]: row["success"] for row in bare.finished}
    modalities = (*policy.config.image_keys, "text", "state")
    rows: list[dict] = []
    net: dict[tuple[str, str], dict[str, dict]] = {}
    for (name, strength), run in trials.items():
        counts = dict.fromkeys(modalities, 0)
        for trace in run.traces():
            named = trace.aux["cause"][trace.aux["cause"] >= 0]
            if len(named) and trace.seed in outcome:
                counts[modalities[int(named[0])]] += bool(trace.success) - bool(outcome[trace.seed])
        direction = found.directions[name]
        place = (type(direction).__name__, direction.site)
        rows.append({"direction": name, "site": direction.site, "strength": strength, **counts})
        for cause, value in counts.items():
            net.setdefault(place, {}).setdefault(cause, {})[name, strength] = value
    gains = {
        place: sum(max(0, *scores.values()) for scores in causes.values())
        for place, causes in net.items()
    }
    chosen = {}
    for cause, scores in net[max(gains, key=gains.__getitem__)].items():
        best = max(scores, key=scores.__getitem__)
        chosen[cause] = best if scores[best] > 0 else None
    return chosen, rows


def main(config: Config) -> list[dict]:
    """Builds and saves everything; returns the table of trials."""
    if config.perturbation is None:
        config = dataclasses.replace(config, perturbation=PERTURBATION)
    policy = load_policy(config.policy)
    assert isinstance(policy, PiPolicy)
    training = record(policy, config, "training", 1_000_000)
    tuning = record(policy, config, "tuning", 2_500_000)
    metrics = build_detector(config, training, tuning)

    found = directions(policy, config, training[1])
    bare = collect(
        policy,
        config.work / "trials" / "bare",
        episodes=config.tuning,
        first_seed=3_000_000,
        perturbation=config.perturbation,
        num_envs=16,
    )
    trials = {
        (name, strength): trial(policy, config, found, name, strength) for name, strength in TRIED
    }
    causes, rows = choose(policy, found, bare, trials)
    notes = {
        "command": "python -m experiments.build.board_mist",
        "perturbation": config.perturbation,
        "detectors": metrics,
        "trials": rows,
    }
    steering = dataclasses.replace(found, causes=causes, notes={**found.notes, **notes})
    save_steering(config.out, steering)
    save_remedy(config.out, RemedyConfig(cap=config.cap))
    return rows


if __name__ == "__main__":
    enable_cache()
    for line in main(tyro.cli(Config)):
        print(line)
