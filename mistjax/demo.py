"""`mistjax demo`: the main job on the shipped board policy, from paired episodes to a report page."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym

import mistjax.envs  # noqa: F401 (registers the environments)
from mistjax.policies import BOARD, PiPolicy
from mistjax.recover.explanation import alarm_explanations
from mistjax.recover.study import run_arms
from mistjax.report.build import build_report, explanations
from mistjax.report.html import Section
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import table

SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """What the demo runs.

    Attributes:
        policy: checkpoint of the bare policy.
        mist: its monitor and remedy.
        out: run folder; the page is `report.html` in it.
        episodes: paired episodes of each arm.
        first_seed: their seeds count up from here.
        perturbation: what is changed in the environment, name -> strength.
        videos: episodes of each arm recorded as video.
        num_envs: environments in lock-step.
    """

    policy: Path = SHIPPED / "board_pi0"
    mist: Path = SHIPPED / "board_mist"
    out: Path = Path("runs/demo")
    episodes: int = 24
    first_seed: int = 5_000_000
    perturbation: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"camera_angle": 0.5}
    )
    videos: int = 6
    num_envs: int = 8


def main(config: DemoConfig) -> dict[str, Run]:
    """Runs all arms, prints the table, writes the report; returns the runs."""
    start = time.perf_counter()
    policy = PiPolicy.load(config.policy, BOARD)
    seeds = range(config.first_seed, config.first_seed + config.episodes)
    runs = run_arms(
        policy,
        config.mist,
        make_board,
        seeds,
        config.out,
        perturbation=config.perturbation,
        record_video=seeds[: config.videos],
        num_envs=config.num_envs,
    )
    print(format_table(table(runs)))
    what = ", ".join(f"{name} {strength:g}" for name, strength in config.perturbation.items())
    page = build_report(
        runs,
        config.out / "report.html",
        title="mistjax demo",
        subtitle=(
            f"A tiny pi0 (0.9 M parameters) on the simulated Go board, {config.episodes} paired "
            f"episodes an arm, perturbation: {what or 'none'}."
        ),
        extra=why(policy, runs["mist"]),
    )
    print(f"\n{page} written; {time.perf_counter() - start:.0f} s in all.")
    return runs


def make_board() -> gym.Env:
    return gym.make("mistjax/Board-v0")


def why(policy: PiPolicy, run: Run) -> list[Section]:
    """The report's section on what the alarms relied on; none if no remedy began on video."""
    shown = alarm_explanations(policy, run)
    return [explanations(shown)] if shown else []


def format_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows of equal keys as aligned text."""
    names = list(rows[0])
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
