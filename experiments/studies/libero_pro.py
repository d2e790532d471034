"""The LIBERO policy where scene or request are not what it was taught, with and without MIST.

    python -m experiments.studies.libero_pro

LIBERO-PRO's suites of libero_object, as published: another object of the kind (`_object`), objects
that swapped places (`_swap`), other words (`_lan`), another goal (`_task`). And the position
perturbation by strength: the asked object starts `strength` times 12 cm from where demonstrations
had it. No input is unsound here: what MIST could do is harm, where its monitor takes a scene that
it does not know for a broken camera.

`mistjax libero-pro` fetches the suites. Some 12 s an episode on one free CPU core. Interrupt it at
will: recorded episodes are kept. Conditions may be played side by side, by `--conditions` with
`--no-table`.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import tyro

from experiments.record import command, write_results
from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.envs.faults.battery import Mixture
from mistjax.policies.load import load_policy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.studies.arms import Subject, make_arm
from mistjax.studies.table import Outcomes, outcomes, rows

ARMS = ("bare", "mist")
SUITES = ("object", "swap", "lan", "task")
STRENGTHS = (0.0, 0.2, 0.5, 1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is played.

    Attributes:
        policy: checkpoint.
        mist: folder of its monitors and remedies.
        out: folder of runs.
        results: where the numbers are kept.
        suite: whose tasks the policy knows.
        conditions: suites of LIBERO-PRO by their ending, and strengths of the position
            perturbation, as position_0.2.
        episodes: of each task, arm and condition: its first so many fixed start states, or drawn
            ones.
        table: whether to write the results, which takes all conditions.
    """

    policy: Path = SHIPPED / "libero_pi0"
    mist: Path = SHIPPED / "libero_mist"
    out: Path = Path("runs/libero_pro")
    results: Path = Path("experiments/results/libero_pro.json")
    suite: str = "libero_object"
    conditions: tuple[str, ...] = (*SUITES, *(f"position_{s}" for s in STRENGTHS))
    episodes: int = 2
    table: bool = True


def plan(config: Config, condition: str) -> EpisodePlan:
    """The episodes of a condition."""
    kind, _, strength = condition.partition("_")
    moved = kind == "position"
    return EpisodePlan(
        suite=config.suite if moved else f"{config.suite}_{kind}",
        episodes=config.episodes,
        perturbation={"position": float(strength)} if moved else {},
        num_envs=1,
    )


def play(subject: Subject, out: Path, asked: EpisodePlan) -> dict[str, Outcomes]:
    """The episodes of each arm, recorded where they are not yet."""
    runs = {
        arm: collect(
            make_arm(arm, subject, Mixture()),
            out / arm,
            asked,
            env_options=subject.bare.preset.env_options,
        )
        for arm in ARMS
    }
    return {arm: outcomes(run, run.seeds) for arm, run in runs.items()}


def summary(condition: str, found: dict[str, Outcomes], asked: int) -> dict[str, Any]:
    """The rows of both arms, and the input that was named first, by how often."""
    crashed = {arm: asked - len(episodes) for arm, episodes in found.items()}
    named = collections.Counter(row["named_input"] or "nothing" for row in found["mist"].values())
    return {
        "rows": [row.to_json() for row in rows(condition, found, crashed, None)],
        "named": dict(named.most_common()),
    }


def main(config: Config) -> None:
    """Plays, prints and writes the numbers."""
    results, subject = {}, Subject(load_policy(config.policy), config.mist)
    for condition in config.conditions:
        asked = plan(config, condition)
        found = play(subject, config.out / condition, asked)
        results[condition] = summary(condition, found, len(asked.seeds()))
        for row in results[condition]["rows"]:
            print(f"{condition}, {row['arm']}: {row['successes']} of {row['n']}")
        print(f"named: {results[condition]['named']}", flush=True)
    if config.table:
        content = {
            "command": command("experiments.studies.libero_pro"),
            "policy_fingerprint": subject.bare.spec.fingerprint,
            "episodes": config.episodes,
            "conditions": results,
        }
        write_results(config.results, content)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
