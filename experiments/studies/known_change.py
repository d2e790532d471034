"""Does steering repair a change of appearance that it was fitted to? The shipped board policy under
a checkered table, paired seeds, four arms.

    python -m experiments.studies.known_change --episodes 200

The monitor of failures alone, with an affine map as its remedy; no input is watched or repaired.
See `mistjax.recover.study` for the arms. Success with Wilson intervals, McNemar's exact test of
each arm against bare, and of mist against random. Interrupt it at will: the same command goes on.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import tyro

from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.demo import MIST, POLICY, check_shipped
from mistjax.recover.study import StudyConfig
from mistjax.report.study import run_study
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.summary import compare, table

PERTURBATION = {"table_texture": 0.4}


@dataclasses.dataclass(frozen=True)
class Config:
    """Seeds and perturbation of the study.

    Attributes:
        out: run folder; the report page is in it.
        results: where the table is kept.
        episodes: paired episodes of each arm.
        first_seed: unseen by training, calibration and tuning.
        perturbation: what is changed in the environment, name -> strength; a checkered table if
            None.
    """

    out: Path = Path("runs/known_change")
    results: Path = Path("experiments/results/known_change.json")
    episodes: int = 200
    first_seed: int = 4_000_000
    perturbation: dict[str, float] | None = None


def main(config: Config) -> list[dict[str, str]]:
    """Runs the study, writes report and results, returns the table."""
    check_shipped()
    plan = EpisodePlan(
        episodes=config.episodes,
        first_seed=config.first_seed,
        perturbation=config.perturbation or PERTURBATION,
        videos=3,
    )
    with tempfile.TemporaryDirectory() as folder:
        steering = Path(folder) / "steering"
        inputs = shutil.ignore_patterns("inputs.*", "repairs.*")
        shutil.copytree(MIST, steering, ignore=inputs)
        title = "A known change of appearance"
        runs = run_study(StudyConfig(POLICY, steering, config.out, plan=plan, title=title))
    rows, pair = table(runs), compare(runs["random"], runs["mist"])
    control = (
        f"mist against random: {pair.repaired} repaired, {pair.broken} broken of {pair.n} pairs, "
        f"McNemar p = {pair.p_value:.3g}"
    )
    print(control)
    result = {
        "command": f"python -m experiments.studies.known_change --episodes {config.episodes}",
        "first_seed": config.first_seed,
        "perturbation": runs["bare"].config["perturbation"],
        "policy_fingerprint": runs["bare"].config["policy_fingerprint"],
        "mist_fingerprint": runs["mist"].config["policy_fingerprint"],
        "table": rows,
        "control": control,
    }
    write_results(config.results, result)
    return rows


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
