"""Do sparse features keep what the board policy acts by, and do they tell that it will fail?

    python -m experiments.studies.sparse_features

Trained on the action tokens of the last layer of `checkpoints/board_pi0`, recorded under a texture
that it often fails under. Features take the tokens' place at every inference; as many random
directions, as many principal components and the mean are the controls. What tells of failure is
chosen on the recorded episodes and measured on others, beside the tokens themselves and beside
labels that were shuffled; only inferences that every episode has count, as failures last longer.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.demo import POLICY
from mistjax.detect.metrics import roc_auc
from mistjax.hooks.sites import Tap
from mistjax.policies.load import load_policy
from mistjax.report.features import Features, SparseConfig, find_features
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import compare, summarize
from mistjax.stats import bootstrap
from mistjax.steer.policy import SteeredPolicy
from mistjax.steer.sparse import replacements, token_activations

_SHUFFLES = 200


@dataclasses.dataclass(frozen=True)
class Config:
    """What is recorded and played.

    Attributes:
        out: folder of the runs.
        results: file for the numbers.
        tap: whose tokens.
        recorded: episodes to train on.
        played: episodes of each arm.
        tested: episodes on which failures are told, the bare arm's and more.
        texture: strength of the perturbation `table_texture`.
    """

    out: Path = Path("runs/sparse_features")
    results: Path = Path("experiments/results/sparse_features.json")
    tap: str = "action.resid@-1/action/tokens"
    recorded: int = 80
    played: int = 100
    tested: int = 200
    texture: float = 0.2


def main(config: Config) -> dict[str, Any]:
    """Records, trains, plays; goes on where it was interrupted."""
    policy, tap = load_policy(POLICY), Tap.parse(config.tap)
    plan = EpisodePlan(
        first_seed=6_500_000, perturbation={"table_texture": config.texture}, num_envs=16
    )
    options = policy.preset.env_options

    def play(name: str, arm: Any, **changes: Any) -> Run:
        taps = (tap,) if arm is policy else ()
        return collect(arm, config.out / name, plan, env_options=options, taps=taps, **changes)

    run = play("recorded", policy, episodes=config.recorded)
    other = {"first_seed": 6_600_000}
    tested = play("tested", policy, episodes=config.tested, **other)
    settings = SparseConfig(tap)
    found, tokens = find_features(run, settings)
    edits = replacements(found.coder, tokens, tap, policy.spec)
    arms = {
        name: play(name, SteeredPolicy(policy, edit, name=name), episodes=config.played, **other)
        for name, edit in edits.items()
    }
    rows = [{"arm": "bare", "left": 0.0, "success": str(summarize(tested).success)}]
    rows += [
        {
            "arm": name,
            "left": found.left.get(name, 1.0),
            "success": str(summarize(arm).success),
            "against": str(compare(tested, arm)),
        }
        for name, arm in arms.items()
    ]
    result = {
        "command": "python -m experiments.studies.sparse_features",
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
        "policy": policy.spec.fingerprint,
        "recorded": str(summarize(run).success),
        "features": settings.features,
        "k": settings.k,
        "dead": found.history[-1].dead,
        "arms": rows,
        **told(found, run, tested, tap),
    }
    write_results(config.results, result)
    print(json.dumps(result, indent=1))
    return result


def told(found: Features, run: Run, tested: Run, tap: Tap) -> dict[str, Any]:
    """AUC of failures on episodes that nothing was chosen on.

    `chosen` are the features that told best among the recorded episodes, `all features` and
    `tokens` linear discriminants of an episode's mean, each beside discriminants of as many
    shuffled labels; `length` is the number of steps, which nobody knows before the end.
    """
    coder = found.coder
    sides = []
    for one in (run, tested):
        tokens, episode = token_activations(one, tap)
        steps = [len(trace.inference_step) for trace in one.traces()]
        by_inference = [
            tokens[episode == e].reshape(n, -1, tokens.shape[1]) for e, n in enumerate(steps)
        ]
        sides.append((by_inference, np.array([not row["success"] for row in one.finished])))
    first = min(len(x) for side, _ in sides for x in side)
    codes, means = [], []
    for side, _ in sides:
        cut = np.stack([x[:first] for x in side])
        means.append(cut.mean((1, 2)))
        codes.append(np.stack([np.asarray(coder.encode(x)).mean((0, 1)) for x in cut]))
    failed, held = (outcome for _, outcome in sides)
    rng = np.random.default_rng(0)
    rows = []
    for name, (known, new) in {"all features": codes, "tokens": means}.items():
        score = discriminant(known, failed, new)
        chance = [
            roc_auc(discriminant(known, rng.permutation(failed), new), held)
            for _ in range(_SHUFFLES)
        ]
        rows.append(_row(name, score, held, np.quantile(chance, (0.025, 0.975))))
    length = np.array([row["steps"] for row in tested.finished], float)
    rows.append(_row("length", length, held, None))
    own = np.array([roc_auc(column, failed) for column in codes[0].T])
    strongest = np.argsort(-np.abs(np.nan_to_num(own, nan=0.5) - 0.5))[:5]
    again = [
        np.abs(np.nan_to_num([roc_auc(c, s) for c in codes[0].T], nan=0.5) - 0.5).max()
        for s in (rng.permutation(failed) for _ in range(_SHUFFLES))
    ]
    chosen = [
        {
            "feature": int(f),
            "chosen": float(own[f]),
            "p": float(np.mean(np.array(again) >= abs(own[f] - 0.5))),
            **_row("", np.sign(own[f] - 0.5) * codes[1][:, f], held, None),
        }
        for f in strongest
    ]
    return {
        "inferences": first,
        "failures": [int(failed.sum()), int(held.sum())],
        "predictors": rows,
        "chosen": chosen,
    }


def discriminant(known: np.ndarray, failed: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Along the failures' mean from the successes', in units of each column's spread."""
    spread = known.std(0)
    use = spread > 0
    way = (known[failed].mean(0) - known[~failed].mean(0))[use] / spread[use] ** 2
    return new[:, use] @ way


def _row(name: str, score: np.ndarray, failed: np.ndarray, chance: Any) -> dict[str, Any]:
    between = bootstrap(lambda index: roc_auc(score[index], failed[index]), len(score))
    row: dict[str, Any] = {"by": name, "auc": float(roc_auc(score, failed)), "interval": between}
    if chance is not None:
        row["shuffled"] = [float(c) for c in chance]
    return row


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
