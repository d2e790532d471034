"""Does the loop carry over to LIBERO? All of it, on the shipped policy and libero_object.

    python -m experiments.studies.libero_loop
    R=runs/libero
    python -m experiments.studies.libero_policy --recorded $R/fitting $R/calibration

1. Clean episodes of the policy are recorded once, from fixed starts of each task: some to fit the
   monitors to, others to calibrate both thresholds, and some of the first again, with every image
   token, to fit the imputer to. The second command makes the policy's nominal success of them.
2. A monitor of the inputs with an imputer and a reckoning of the state, and a monitor of failures,
   as `fit-inputs`, `fit-imputer`, `fit-reckoning`, `train-detector` and `calibrate` make them; in
   between the first starts are played once more, on a reckoned state.
3. The study `full_mist` on starts that neither saw, under the board's mixture of faults without
   sensor noise, which this policy was not taught with and the clean episodes do not have. The
   random input is the control that could have won.

    python -m experiments.studies.libero_loop --mist checkpoints/libero_mist \
        --first-seed 10 --episodes 10

plays the third step alone, with monitors and an imputer that are there already; `--conditions
wrist_frozen push --results FILE` plays these faults in place of the mixture, one in every episode.

Fits take four minutes, an episode some ten seconds of an idle core. Interrupt it at will: recorded
episodes and finished fits are kept. Tasks may be played side by side by `mistjax collect` and
`mistjax study` with `--tasks`, and put into these folders by `mistjax merge`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.record import command, write_results
from experiments.studies.clean import record_clean
from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.detect.artifact import read_card
from mistjax.detect.calibration.runs import calibrate_detector
from mistjax.detect.inputs import DEFAULT_TAPS
from mistjax.detect.novelty.build import build_inputs
from mistjax.detect.training import train_detector
from mistjax.hooks.sites import Tap
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.recover.reckoned import ReckonedPolicy
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.stats import mcnemar
from mistjax.steer.remedies.build import TAP, build_imputer, build_reckoning
from mistjax.studies.run import StudyPlan, run_study
from mistjax.studies.table import first_look, paired

FITS = "fits.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is recorded and played.

    Attributes:
        policy: checkpoint.
        out: folder of runs, artefact and page.
        results: where the numbers are kept.
        suite, tasks: what is played; no tasks are all of the suite.
        fitting, calibration: clean episodes of each task.
        tokens: of each task, with what fits the imputer: every image token, which is much to keep.
        astray: of each task, on a reckoned state.
        mist: folder of monitors and imputer; none are recorded for and fitted then.
        first_seed: the study's first start of each task; by default the first that no fit saw.
        episodes: of each task, arm and condition of the study.
        conditions: see `studies.conditions.condition`; without sensor noise here.
        arms: see `StudyPlan`.
        alpha: bound on the chance of any alarm in a clean episode, or in a success; on average over
            calibrations, since the same bound for 95% of them takes more episodes. More than the
            share of clean episodes that fail: their pictures are as unusual as an unsound camera's.
        detector: of failures.
        steps: of the imputer's training.
    """

    policy: Path = SHIPPED / "libero_pi0"
    out: Path = Path("runs/libero")
    results: Path = Path("experiments/results/libero_loop.json")
    suite: str = "libero_object"
    tasks: tuple[int, ...] = ()
    fitting: int = 5
    calibration: int = 5
    tokens: int = 5
    astray: int = 5
    mist: Path | None = None
    first_seed: int | None = None
    episodes: int = 3
    conditions: tuple[str, ...] = ("mixture",)
    arms: tuple[str, ...] = ("bare", "monitor", "mist", "random_input", "oracle")
    alpha: float = 0.2
    detector: str = "linear_probe"
    steps: int = 2000


def record(
    config: Config, policy: Policy, name: str, first: int, episodes: int, taps: Sequence[Tap] = ()
) -> Run:
    """Clean episodes of every task."""
    plan = EpisodePlan(
        suite=config.suite, tasks=config.tasks, first_seed=first, episodes=episodes, num_envs=1
    )
    return record_clean(policy, config.out / name, plan, (*DEFAULT_TAPS, *taps))


def fit(
    config: Config, policy: Policy, fitting: Run, calibration: Run, tokens: Run
) -> dict[str, Any]:
    """Both monitors and the remedies; what was said of them, kept beside them."""
    folder = config.out / "mist"
    said = folder / FITS
    if said.exists():
        return json.loads(said.read_text())
    train_detector([fitting], folder, name=config.detector, folds=3)
    failures = calibrate_detector(folder, [calibration], alpha=config.alpha)
    inputs = build_inputs(
        policy, [fitting], [calibration], folder, alpha=config.alpha, confidence=None
    )
    unexplained = build_imputer(policy, [tokens], folder, steps=config.steps)
    lost = ReckonedPolicy.load(policy, folder)
    astray = record(config, lost, "astray", 0, config.astray)
    build_reckoning(policy, [fitting], folder, reckoned=[astray])
    found = {
        "episodes": [len(run.finished) for run in (fitting, calibration, tokens, astray)],
        "inputs": inputs.threshold.describe("clean"),
        "unexplained": {s.camera: {"imputed": s.imputed, "held": s.held} for s in unexplained},
        "failures": failures.describe(),
        "detector": read_card(folder),
    }
    write_results(said, found)
    return found


def main(config: Config) -> dict[str, Any]:
    """Records, fits, plays and writes the results."""
    policy = load_policy(config.policy)
    fits = {}
    if config.mist is None:
        fitting = record(config, policy, "fitting", 0, config.fitting)
        calibration = record(config, policy, "calibration", config.fitting, config.calibration)
        tokens = record(config, policy, "tokens", 0, config.tokens, [TAP])
        fits["fits"] = fit(config, policy, fitting, calibration, tokens)
    first = config.first_seed
    if first is None:
        first = max(config.fitting + config.calibration, config.tokens, config.astray)
    found = run_study(
        StudyPlan(
            "full_mist",
            policy=config.policy,
            mist=config.mist or config.out / "mist",
            out=config.out / "study",
            episodes=config.episodes,
            first_seed=first,
            arms=config.arms,
            conditions=config.conditions,
            sensor_noise=False,
            suite=config.suite,
            tasks=config.tasks,
            title="full_mist, LIBERO",
        )
    )
    results = {
        "command": command("experiments.studies.libero_loop"),
        "policy_fingerprint": policy.spec.fingerprint,
        "first_start": first,
        **fits,
        "tables": {"study": [row.to_json() for row in found.rows]},
        "losses": found.losses,
        "won": won(found.outcomes),
        "named": named(found.outcomes),
        "faults": by_fault(found.outcomes, policy.spec.execute_steps),
    }
    write_results(config.results, results)
    return results


def won(outcomes: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Condition -> other arm -> episodes in which the loop alone succeeded, or the other alone, and
    McNemar's exact p of it."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for where, arms in outcomes.items():
        others = [arm for arm in arms if arm != "mist"] if "mist" in arms else []
        for arm in others:
            other, mist = paired(arms[arm], arms["mist"])
            found.setdefault(where, {})[arm] = {
                "won": int((mist & ~other).sum()),
                "lost": int((other & ~mist).sum()),
                "p": mcnemar(other, mist),
            }
    return found


def named(outcomes: Any) -> dict[str, dict[str, dict[str, int]]]:
    """Condition -> input that is unsound -> input that was named -> episodes.

    Of the arm that repairs nothing, or of the loop, whose first name comes before any repair.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    for where, arms in outcomes.items():
        for row in arms.get("monitor", arms.get("mist", {})).values():
            truth, said = row["fault_input"] or "nothing", row["named_input"] or "nothing"
            counts = found.setdefault(where, {}).setdefault(truth, {})
            counts[said] = counts.get(said, 0) + 1
    return found


def by_fault(outcomes: Any, execute: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Condition -> fault -> episodes, successes by arm, and when the loop named the unsound input:
    at the first look that could show it, within ten looks, later, or never."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for where, arms in outcomes.items():
        for seed, row in arms.get("mist", {}).items():
            kind = row["fault"] or "none"
            part = found.setdefault(where, {}).setdefault(
                kind, {"n": 0, "success": {}, "named": {}}
            )
            part["n"] += 1
            for arm, rows in arms.items():
                part["success"][arm] = part["success"].get(arm, 0) + bool(rows[seed]["success"])
            if row["fault_input"]:
                when = _when(row, execute)
                part["named"][when] = part["named"].get(when, 0) + 1
    return found


def _when(row: Mapping[str, Any], execute: int) -> str:
    if row["named_input"] != row["fault_input"]:
        return "never"
    looks = (row["named_step"] - first_look(row, execute)) // execute
    if looks < 0:
        return "before"
    return "at once" if looks == 0 else "within ten looks" if looks <= 10 else "later"


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
