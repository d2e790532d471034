"""Does the whole loop repair a policy? The shipped board policy, paired seeds, four arms.

    python -m experiments.studies.full_mist --episodes 200

See `mistjax.recover.study` for the arms. Success with Wilson intervals, McNemar's exact test of
each arm against bare, and of mist against random. Interrupt it at will: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro

from mistjax.compilation import enable_cache
from mistjax.demo import shipped_study
from mistjax.report.study import run_study
from mistjax.rollouts.summary import compare, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Seeds and perturbation of the study.

    Attributes:
        out: run folder; the report page is in it.
        results: where the table is kept.
        episodes: paired episodes of each arm.
        first_seed: unseen by training, calibration and tuning.
        perturbation: what is changed in the environment, name -> strength; None takes the demo's.
    """

    out: Path = Path("runs/exp003")
    results: Path = Path("experiments/results/full_mist.json")
    episodes: int = 200
    first_seed: int = 4_000_000
    perturbation: dict[str, float] | None = None


def main(config: Config) -> list[dict[str, str]]:
    """Runs the study, writes report and results, returns the table."""
    runs = run_study(
        shipped_study(
            out=config.out,
            episodes=config.episodes,
            first_seed=config.first_seed,
            perturbation=config.perturbation,
            videos=3,
            title="The whole loop under a perturbation",
        )
    )
    rows, pair = table(runs), compare(runs["random"], runs["mist"])
    control = (
        f"mist against random: {pair.repaired} repaired, {pair.broken} broken of {pair.n} pairs, "
        f"McNemar p = {pair.p_value:.3g}"
    )
    print(control)
    result = {
        "command": f"python -m experiments.studies.full_mist --episodes {config.episodes}",
        "first_seed": config.first_seed,
        "perturbation": runs["bare"].config["perturbation"],
        "policy_fingerprint": runs["bare"].config["policy_fingerprint"],
        "mist_fingerprint": runs["mist"].config["policy_fingerprint"],
        "table": rows,
        "control": control,
    }
    config.results.parent.mkdir(parents=True, exist_ok=True)
    config.results.write_text(json.dumps(result, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
