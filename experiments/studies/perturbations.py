"""Which change of the board matters most to which policy, strength by strength?

    python -m experiments.studies.perturbations

Every perturbation of the board at two strengths, on the same seeds as the plain board, for the
shipped board policies. Those written in JAX are played as compiled programs (kinematic physics, see
docs/compiled.md), the others by the host loop.

Source: the granular perturbations of Zhang et al., arXiv 2605.00321.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro

from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.envs.board.perturbations import PERTURBATIONS
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import compare, summarize
from mistjax.stats import holm

_HOST = ("board_openvla", "board_smolvla")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is played.

    Attributes:
        policies: names of shipped board policies; what an earlier call played of others is kept.
        perturbations: which.
        strengths: of each perturbation.
        episodes: of each cell, on the same seeds.
        out: folder of the runs.
        results: file for the numbers.
    """

    policies: tuple[str, ...] = ("board_pi0", "board_pi0_dropout", "board_fast", "board_openvla")
    perturbations: tuple[str, ...] = tuple(PERTURBATIONS)
    strengths: tuple[float, ...] = (0.5, 1.0)
    episodes: int = 50
    out: Path = Path("runs/perturbations")
    results: Path = Path("experiments/results/perturbations.json")


def main(config: Config) -> dict[str, Any]:
    """Plays what is missing; writes the file after every policy."""
    cells = [(name, s) for name in config.perturbations for s in config.strengths]
    result = {"command": "python -m experiments.studies.perturbations", "policies": {}}
    if config.results.exists():
        result["policies"] = json.loads(config.results.read_text())["policies"]
    for name in config.policies:
        policy = load_policy(f"checkpoints/{name}")
        bare = play(config, name, policy, None)
        rows, p_values = [], {}
        for perturbation, strength in cells:
            run = play(config, name, policy, (perturbation, strength))
            paired, rate = compare(bare, run), summarize(run).success
            rows.append(
                {
                    "perturbation": perturbation,
                    "kind": PERTURBATIONS[perturbation].kind,
                    "strength": strength,
                    "k": rate.k,
                    "n": rate.n,
                    "points": 100 * paired.difference,
                }
            )
            p_values[str(len(rows) - 1)] = paired.p_value
        for index, p in holm(p_values).items():
            rows[int(index)]["p"] = p
        clean = summarize(bare).success
        result["policies"][name] = {
            "fingerprint": bare.config["policy_fingerprint"],
            "physics": "MuJoCo" if name in _HOST else "kinematic",
            "clean": [clean.k, clean.n],
            "rows": rows,
        }
        write_results(config.results, result)
    return result


def play(config: Config, name: str, policy: Policy, change: tuple[str, float] | None) -> Run:
    """One cell; None is the plain board."""
    compiled = name not in _HOST
    plan = EpisodePlan(
        episodes=config.episodes,
        first_seed=6_700_000,
        perturbation=dict([change] if change else []),
        compiled=compiled,
        num_envs=25 if compiled else 16,
    )
    folder = config.out / name / ("clean" if change is None else f"{change[0]}_{change[1]}")
    options = None if compiled else policy.preset.env_options
    return collect(policy, folder, plan, env_options=options)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
