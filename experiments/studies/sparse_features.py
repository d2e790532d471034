"""Do sparse features keep what the board policy acts by, and which of them tell that it will fail?

    python -m experiments.studies.sparse_features

Trained on the action tokens of the last layer of `checkpoints/board_pi0`, recorded under a texture
that it often fails under. Features take the tokens' place at every inference; as many principal
components and the mean are the controls, on seeds of their own.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro

from mistjax.compilation import enable_cache
from mistjax.demo import POLICY
from mistjax.hooks.sites import Tap
from mistjax.policies.load import load_policy
from mistjax.report.features import SparseConfig, find_features, replaced
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.summary import compare, summarize


@dataclasses.dataclass(frozen=True)
class Config:
    """What is recorded and played.

    Attributes:
        out: folder of the runs.
        results: file for the numbers.
        tap: whose tokens.
        recorded: episodes to train on.
        played: episodes of each arm.
        texture: strength of the perturbation `table_texture`.
    """

    out: Path = Path("runs/sparse_features")
    results: Path = Path("experiments/results/sparse_features.json")
    tap: str = "action.resid@-1/action/tokens"
    recorded: int = 80
    played: int = 100
    texture: float = 0.2


def main(config: Config) -> dict[str, Any]:
    """Records, trains, plays; goes on where it was interrupted."""
    policy, tap = load_policy(POLICY), Tap.parse(config.tap)
    plan = EpisodePlan(
        episodes=config.recorded,
        first_seed=6_500_000,
        perturbation={"table_texture": config.texture},
        num_envs=16,
    )
    options = policy.preset.env_options
    run = collect(policy, config.out / "recorded", plan, env_options=options, taps=(tap,))
    settings = SparseConfig(tap, episodes=config.played, num_envs=16)
    found, tokens = find_features(run, settings)
    arms = replaced(policy, found.coder, tokens, run, settings, config.out)
    bare = arms["bare"]
    result = {
        "command": "python -m experiments.studies.sparse_features",
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
        "policy": policy.spec.fingerprint,
        "recorded": str(summarize(run).success),
        "features": settings.features,
        "k": settings.k,
        "dead": found.history[-1].dead,
        "arms": [
            {
                "arm": name,
                "left": found.left.get(name, 0.0 if arm is bare else 1.0),
                "success": str(summarize(arm).success),
                "against": None if arm is bare else str(compare(bare, arm)),
            }
            for name, arm in arms.items()
        ],
        "tested": len(found.p_values),
        "telling": [
            {"feature": f, "auc": float(found.auc[f]), "p": found.p_values[f]}
            for f in found.telling(10)
            if found.p_values[f] < 0.05
        ],
    }
    config.results.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
