"""Does the loop carry over to other policies: actions written as tokens, and PyTorch?

    python -m experiments.studies.other_loops

For each policy, as `docs/does_it_help.md` has it: clean episodes with sensor noise, a monitor of
the inputs and remedies that are fitted to them, and the study `full_mist` on the headline mixture,
with the controls that could have won. Seeds are those of `experiments.studies.full_mist`, and those
of fitting and calibration are others (`envs.faults.splits`). Nothing was tuned for these policies.
Some 25 minutes a policy on an idle core. Interrupt it at will: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro

from experiments.record import command, write_results
from experiments.studies.clean import record_clean
from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.detect.inputs import DEFAULT_TAPS
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.build import build_inputs
from mistjax.envs.faults.splits import SEEDS
from mistjax.policies.load import load_policy
from mistjax.policies.pi import PiPolicy
from mistjax.policies.protocol import Policy
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.steer.remedies.artifact import CARD
from mistjax.steer.remedies.build import TAP, build_imputer
from mistjax.studies.run import StudyPlan, run_study

LOCKSTEP = {"board_fast": 50, "board_openvla": 20}
"""Environments side by side."""


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is recorded and played.

    Attributes:
        policies: shipped checkpoints, keys of `LOCKSTEP`.
        work: folder of runs, artefacts and pages, one folder a policy.
        results: where the numbers are kept; those of policies that are not asked for stay.
        fitting, calibration: clean episodes.
        episodes: of each arm.
        first_seed: of the study.
        arms: see `StudyPlan`.
    """

    policies: tuple[str, ...] = tuple(LOCKSTEP)
    work: Path = Path("runs/other_loops")
    results: Path = Path("experiments/results/other_loops.json")
    fitting: int = 400
    calibration: int = 600
    episodes: int = 200
    first_seed: int = 23_200_000
    arms: tuple[str, ...] = (
        "bare",
        "monitor",
        "mist",
        "oracle",
        "random_input",
        "all_at_alarm",
        "always_all",
    )


def record(config: Config, policy: Policy, purpose: str, episodes: int) -> Run:
    """Clean episodes; for an imputer with the image tokens, where what is read does not give
    them.
    """
    name, tokens = policy.spec.name, purpose == "fitting" and not isinstance(policy, PiPolicy)
    plan = EpisodePlan(
        first_seed=SEEDS[purpose].start,
        episodes=episodes,
        sensor_noise=True,
        num_envs=LOCKSTEP[name],
    )
    taps = (TAP,) if tokens else DEFAULT_TAPS
    return record_clean(policy, config.work / name / purpose, plan, taps)


def fit(config: Config, policy: Policy, folder: Path) -> None:
    """Monitor and remedies, unless they are there."""
    fitting = record(config, policy, "fitting", config.fitting)
    calibration = record(config, policy, "calibration", config.calibration)
    if not (folder / "inputs.json").exists():
        build_inputs(policy, [fitting], [calibration], folder, alpha=0.1, confidence=0.95)
    if not (folder / "repairs.json").exists():
        build_imputer(policy, [fitting], folder)


def play(config: Config, name: str) -> dict[str, Any]:
    """One policy's loop: what its monitor promises, what its imputer leaves, and the study."""
    policy, folder = load_policy(SHIPPED / name), config.work / name / "mist"
    fit(config, policy, folder)
    found = run_study(
        StudyPlan(
            "full_mist",
            policy=SHIPPED / name,
            mist=folder,
            out=config.work / name / "study",
            episodes=config.episodes,
            first_seed=config.first_seed,
            arms=config.arms,
            conditions=("mixture",),
            num_envs=LOCKSTEP[name],
            title=f"full_mist, {name}",
        )
    )
    threshold = load_inputs(folder, policy.spec.fingerprint).threshold
    return {
        "policy_fingerprint": policy.spec.fingerprint,
        "threshold": threshold.describe("clean"),
        "unexplained": json.loads((folder / CARD).read_text())["notes"]["unexplained"],
        "table": [row.to_json() for row in found.rows],
        "losses": found.losses,
    }


def main(config: Config) -> dict[str, Any]:
    """Records, fits, plays and writes the results, after every policy."""
    kept = json.loads(config.results.read_text())["policies"] if config.results.exists() else {}
    results: dict[str, Any] = {}
    for name in config.policies:
        kept[name] = play(config, name)
        results = {
            "command": command("experiments.studies.other_loops"),
            "first_seed": config.first_seed,
            "policies": kept,
        }
        write_results(config.results, results)
    return results


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
