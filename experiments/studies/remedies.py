"""Does a remedy that is made for one fault do better than the imputer, or than none?

    python -m experiments.studies.remedies

The arms of docs/does_it_help.md on the fault that each is for: typos from the start, light (a
camera dimmed or with a colour cast), patches; and redrawn chunks on the headline mixture, beside
the same by chance. Strengths are those of both splits. Seeds are test seeds that no other study
plays. Interrupt it at will: the same command goes on, also with more episodes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.record import command, write_results
from mistjax.compilation import enable_cache
from mistjax.demo import MIST, POLICY
from mistjax.envs.faults.battery import CAMERAS, Mixture, even
from mistjax.envs.faults.splits import SEEDS, strengths
from mistjax.files import atomic
from mistjax.stats import holm, mcnemar
from mistjax.studies.run import StudyPlan, run_study
from mistjax.studies.table import paired

NAME = "full_mist"


@dataclasses.dataclass(frozen=True)
class Part:
    """Some arms under a mixture of some faults, evenly, or the headline mixture without faults;
    `against` says which arm some of them are compared with beside bare.
    """

    faults: tuple[str, ...]
    arms: tuple[str, ...]
    against: Mapping[str, str]
    onset: tuple[int, int] | None = None


def others(arms: Sequence[str], control: str) -> dict[str, str]:
    """The same control of each."""
    return {arm: control for arm in arms if arm not in ("bare", control)}


LIGHT = ("bare", "mist", "gain", "gain_always", "first_sound", "random_direction")
PATCHES = ("bare", "mist", "paste", "paste_always", "first_sound", "random_direction")
REDRAWN = ("best_of", "guided", "elite", "feedback")


PARTS = {
    "typos": Part(
        ("instruction_typos",),
        ("bare", "mist", "corrected"),
        others(("corrected",), "mist"),
        (0, 0),
    ),
    "light": Part(
        tuple(f"{camera}_{kind}" for camera in CAMERAS for kind in ("dimmed", "colour_cast")),
        LIGHT,
        others(LIGHT, "mist"),
    ),
    "patches": Part(
        tuple(f"{camera}_patch" for camera in CAMERAS), PATCHES, others(PATCHES, "mist")
    ),
    "redrawn": Part(
        (),
        (
            "bare",
            "mist",
            *(f"{name}{kind}" for kind in ("", "_random", "_always") for name in REDRAWN),
        ),
        {name: f"{name}_random" for name in REDRAWN} | {f"{name}_always": name for name in REDRAWN},
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is played, and where it goes.

    Attributes:
        out: runs and pages, one folder a part.
        results: where the tables are kept.
        parts: of `PARTS`.
        episodes: of each arm.
        first_seed: of the episodes.
    """

    out: Path = Path("runs/remedies")
    results: Path = Path("experiments/results/remedies.json")
    parts: tuple[str, ...] = tuple(PARTS)
    episodes: int = 60
    first_seed: int = SEEDS["test"].start + 400_000


def mixture_of(config: Config, name: str) -> str:
    """The condition of a part: a file of its mixture, or the name of the headline one."""
    part = PARTS[name]
    if not part.faults:
        return "mixture"
    both = {f: (*strengths(f), *strengths(f, unseen=True)) for f in part.faults}
    options: dict[str, Any] = {} if part.onset is None else {"onset": part.onset}
    mixture = Mixture(tuple(even(1.0, part.faults, both)), **options)
    path = config.out / f"{name}.json"
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(mixture.to_json()))
    return str(path)


def play(config: Config, name: str) -> dict[str, Any]:
    """One part of the study."""
    found = run_study(
        StudyPlan(
            NAME,
            policy=POLICY,
            mist=MIST,
            out=config.out / "study",
            episodes=config.episodes,
            first_seed=config.first_seed,
            arms=PARTS[name].arms,
            conditions=(mixture_of(config, name),),
            title=f"one remedy for one fault, {name}",
        )
    )
    (episodes,) = found.outcomes.values()
    pairs = {arm: paired(episodes[old], episodes[arm]) for arm, old in PARTS[name].against.items()}
    corrected = holm({arm: mcnemar(*pair) for arm, pair in pairs.items()})
    return {
        "command": command("experiments.studies.remedies"),
        "table": [row.to_json() for row in found.rows],
        "against": [
            {
                "arm": arm,
                "control": PARTS[name].against[arm],
                "n": len(after),
                "repaired": int((after & ~before).sum()),
                "broken": int((before & ~after).sum()),
                "p": corrected[arm],
            }
            for arm, (before, after) in pairs.items()
        ],
        "losses": found.losses,
    }


def main(config: Config) -> dict[str, Any]:
    """Plays, and writes the results after every part."""
    config.out.mkdir(parents=True, exist_ok=True)
    kept = json.loads(config.results.read_text())["parts"] if config.results.exists() else {}
    results: dict[str, Any] = {}
    for name in config.parts:
        kept[name] = play(config, name)
        results = {"first_seed": config.first_seed, "parts": kept}
        write_results(config.results, results)
    return results


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
