"""Does the whole loop repair a policy? Paired seeds, four arms, under a perturbation.

    python -m experiments.exp003_full_mist --episodes 200

Arms: `bare`; `monitor` (watches only: must equal bare); `random` (the same alarms, random
    directions of
the same length, the control for steering at all); `mist`. Success with Wilson intervals, and
McNemar's exact test of each arm against bare and of mist against random. Interrupt it at will.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro

from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED, format_table, make_board, why
from mistjax.policies import BOARD, PiPolicy
from mistjax.recover.study import run_arms
from mistjax.report.build import build_report
from mistjax.rollouts.summary import compare, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Policy, monitor, perturbation and seeds of the study; `out` is its run folder."""

    policy: Path = SHIPPED / "board_pi0"
    mist: Path = SHIPPED / "board_mist"
    out: Path = Path("runs/exp003")
    results: Path = Path("experiments/results/exp003_full_mist.json")
    episodes: int = 200
    first_seed: int = 4_000_000
    perturbation: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"camera_angle": 0.5}
    )
    num_envs: int = 16
    videos: int = 3


def main(config: Config) -> list[dict[str, str]]:
    """Runs the study, writes report and results, returns the table."""
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
    rows = table(runs)
    print(format_table(rows))
    pair = compare(runs["random"], runs["mist"])
    control = (
        f"mist against random: {pair.repaired} repaired, {pair.broken} broken of {pair.n} pairs, "
        f"McNemar p = {pair.p_value:.3g}"
    )
    print(control)
    build_report(
        runs,
        config.out / "report.html",
        title="The whole loop under a perturbation",
        subtitle=f"{config.episodes} paired episodes an arm on the simulated board.",
        extra=why(policy, runs["mist"]),
    )
    config.results.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "command": "python -m experiments.exp003_full_mist",
        "episodes": config.episodes,
        "first_seed": config.first_seed,
        "perturbation": config.perturbation,
        "policy_fingerprint": policy.spec.fingerprint,
        "table": rows,
        "control": control,
    }
    config.results.write_text(json.dumps(result, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
