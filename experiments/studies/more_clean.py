"""Does an imputer that was fitted to more clean episodes repair more?

    python -m experiments.studies.more_clean

The shipped one saw 400. Another is fitted to more, as `mistjax fit-imputer` does it, and put beside
the same monitor; both loops, and a random input repaired by either, play the headline mixture on
tuning seeds, as this is a choice. Interrupt it at will.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import tyro

from experiments.record import command, write_results
from experiments.studies.clean import record_clean
from mistjax.compilation import enable_cache
from mistjax.demo import MIST, POLICY
from mistjax.envs.faults.battery import CAMERAS
from mistjax.envs.faults.splits import SEEDS
from mistjax.policies.load import load_policy
from mistjax.rollouts.plan import EpisodePlan
from mistjax.stats import holm, mcnemar
from mistjax.steer.remedies.build import build_imputer
from mistjax.studies.conditions import condition
from mistjax.studies.run import LOCKSTEP, StudyPlan, run_study
from mistjax.studies.table import Outcomes, paired

ARMS = ("bare", "monitor", "mist", "random_input")
SHARED = ("bare", "monitor")
"""Arms that no imputer is part of: played once."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is recorded and played, and where it goes.

    Attributes:
        out: runs, the other imputer and pages.
        results: where the tables are kept.
        clean: episodes that the other imputer is fitted to.
        episodes: of each arm.
        first_seed: of these.
    """

    out: Path = Path("runs/more_clean")
    results: Path = Path("experiments/results/more_clean.json")
    clean: int = 2000
    episodes: int = 300
    first_seed: int = SEEDS["tuning"].start + 900_000


def fit(config: Config) -> Path:
    """The folder of the shipped monitor, with the other imputer in it."""
    policy = load_policy(POLICY)
    plan = EpisodePlan(
        episodes=config.clean,
        first_seed=SEEDS["fitting"].start,
        num_envs=LOCKSTEP,
        sensor_noise=True,
    )
    run = record_clean(policy, config.out / "clean", plan, ())
    folder = config.out / "mist"
    shutil.copytree(MIST, folder, dirs_exist_ok=True)
    build_imputer(policy, [run], folder)
    return folder


def play(config: Config, name: str, mist: Path) -> tuple[list[dict[str, Any]], dict[str, Outcomes]]:
    """(rows of the arms with an imputer, episodes of every arm)."""
    found = run_study(
        StudyPlan(
            "full_mist",
            policy=POLICY,
            mist=mist,
            out=config.out / name,
            episodes=config.episodes,
            first_seed=config.first_seed,
            arms=ARMS,
            conditions=("mixture",),
            title=f"the {name} imputer",
        )
    )
    return [row.to_json() for row in found.rows], dict(found.outcomes["mixture"])


def main(config: Config) -> dict[str, Any]:
    """Records, fits, plays, and writes what came of it."""
    folders = {"shipped": MIST, "other": fit(config)}
    rows, played = {}, {}
    for name, mist in folders.items():
        if name != "shipped":
            for arm in SHARED:
                old, new = (config.out / n / "mixture" / arm for n in ("shipped", name))
                shutil.copytree(old, new, dirs_exist_ok=True)
        rows[name], played[name] = play(config, name, mist)
    faults = condition("mixture").faults
    drawn = {seed: faults.draw(seed) for seed in played["shipped"]["bare"]}
    among = {"all": set(drawn)} | {
        camera: {seed for seed, fault in drawn.items() if fault and fault.input == camera}
        for camera in CAMERAS
    }
    pairs = {
        f"{arm}, {where}": paired(
            *({s: row for s, row in played[name][arm].items() if s in seeds} for name in folders)
        )
        for arm in ARMS[2:]
        for where, seeds in among.items()
    }
    p = holm({name: mcnemar(*pair) for name, pair in pairs.items()})
    results = {
        "command": command("experiments.studies.more_clean"),
        "first_seed": config.first_seed,
        "fitted_to": {"shipped": _notes(MIST), "other": _notes(folders["other"])},
        "rows": rows,
        "against_shipped": [
            {
                "what": name,
                "n": len(new),
                "shipped": int(old.sum()),
                "other": int(new.sum()),
                "repaired": int((new & ~old).sum()),
                "broken": int((old & ~new).sum()),
                "p": p[name],
            }
            for name, (old, new) in pairs.items()
        ],
    }
    write_results(config.results, results)
    return results


def _notes(folder: Path) -> dict[str, Any]:
    """What an imputer was fitted to, and what it leaves unexplained."""
    notes = json.loads((folder / "repairs.json").read_text())["notes"]
    return {"episodes": notes["episodes"], "unexplained": notes["unexplained"]}


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
