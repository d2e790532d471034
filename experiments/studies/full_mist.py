"""Does a loop that names the unsound input and repairs it earn its place?

    R="--policy checkpoints/board_pi0_dropout"
    python -m experiments.studies.faults.record $R --purposes fitting calibration --out runs/robust
    python -m experiments.build.board_inputs $R --runs runs/robust --out runs/robust/mist
    python -m experiments.build.board_repairs $R --runs runs/robust --out runs/robust/mist
    python -m experiments.studies.full_mist

The first commands make the loop around the policy of part `robust`. Then the study `full_mist` (see
`mistjax.studies`) in the sizes of docs/results.md: the mixture with the arms that decide and with
a policy that was trained to do without a camera, the first of its episodes with all controls, and
other conditions with fewer arms. The arms of `ablations` (loop), and of `baselines` and
`steering_only` (failure monitor), play on those first episodes too. Seeds are test seeds, unseen by
fitting, calibration and tuning. Some two hours on an idle core. Interrupt it at will: the same
command goes on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.demo import MIST, POLICY, SHIPPED
from mistjax.studies.registry import STUDIES
from mistjax.studies.run import Found, StudyPlan, run_study
from mistjax.studies.table import check_targets

NAME = "full_mist"
ROBUST = SHIPPED / "board_pi0_dropout"


@dataclasses.dataclass(frozen=True)
class Part:
    """Some arms under some conditions, so many episodes each."""

    conditions: tuple[str, ...]
    arms: tuple[str, ...]
    episodes: int


PARTS = {
    "mixture": Part(
        ("mixture",),
        ("bare", "monitor", "mist", "oracle", "all_at_alarm", "random_input", "always_best"),
        600,
    ),
    "controls": Part(
        ("mixture",),
        (
            "bare",
            "monitor",
            "mist",
            "always_all",
            "oracle_input",
            "wrong_input",
            "random_time",
            "random_direction",
            "no_op",
        ),
        100,
    ),
    "robust": Part(
        ("mixture",),
        ("bare", "mist", "robust", "robust_mist", "robust_masks", "robust_random"),
        600,
    ),
    "robust_nominal": Part(
        ("nominal",), ("bare", "mist", "robust", "robust_mist", "robust_masks"), 200
    ),
    "loop": Part(
        ("mixture",),
        (
            "bare",
            "monitor",
            "mist",
            "without_front",
            "without_wrist",
            "without_state",
            "level_only",
            "change_only",
            "never_ends",
            "cap_0.5",
            "cap_0.25",
        ),
        100,
    ),
    "failure_monitor": Part(
        ("mixture",),
        (
            "bare",
            "monitor",
            "mist",
            "detect_only",
            "retreat",
            "steer",
            "steer_random",
            "steer_always",
        ),
        100,
    ),
    "nominal": Part(("nominal",), ("bare", "monitor", "mist", "always_best"), 200),
    "unseen": Part(("unseen_kinds", "unseen_strengths"), ("bare", "mist", "always_best"), 200),
    "faults": Part(
        ("front_frozen", "wrist_frozen", "state_offset", "push"),
        ("bare", "mist", "always_best"),
        200,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is played, and where it goes.

    Attributes:
        out: runs and pages, one folder a part.
        results: where the tables are kept.
        parts: of `PARTS`.
        scale: share of the episodes of each part, for a quick look.
        first_seed: of the episodes.
        tuning: episodes of each remedy, to find the best one always on.
        robust_mist: monitor and remedies of the policy that was trained to do without a camera.
    """

    out: Path = Path("runs/full_mist")
    results: Path = Path("experiments/results/full_mist.json")
    parts: tuple[str, ...] = tuple(PARTS)
    scale: float = 1.0
    first_seed: int = 23_200_000
    tuning: int = 60
    robust_mist: Path = Path("runs/robust/mist")


def play(config: Config, name: str) -> Found:
    """One part of the study; all parts share a folder of runs."""
    part = PARTS[name]
    return run_study(
        StudyPlan(
            NAME,
            policy=POLICY,
            mist=MIST,
            out=config.out,
            episodes=max(1, round(part.episodes * config.scale)),
            first_seed=config.first_seed,
            arms=part.arms,
            conditions=part.conditions,
            tuning=config.tuning,
            robust=ROBUST,
            robust_mist=config.robust_mist,
            title=f"{NAME}, {name}",
        )
    )


def main(config: Config) -> dict[str, Any]:
    """Plays, writes the results and returns them."""
    found = {name: play(config, name) for name in config.parts}
    episodes: dict[str, Any] = {}
    for part in reversed(found.values()):  # of a condition in several parts, the first one's
        episodes |= part.outcomes
    best = [part.best for part in found.values() if part.best is not None]
    results = {
        "command": "python -m experiments.studies.full_mist",
        "first_seed": config.first_seed,
        "best": best[0] if best else None,
        "preparation": next(iter(found.values())).preparation,
        "tables": {name: [row.to_json() for row in part.rows] for name, part in found.items()},
        "targets": check_targets(STUDIES[NAME].targets, episodes),
        "losses": {
            where: counts
            for part in reversed(found.values())
            for where, counts in part.losses.items()
        },
    }
    write_results(config.results, results)
    return results


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
