"""Success of the tiny LIBERO policy from fixed start states, and a failure detector on its runs.

    python -m experiments.eval_libero_policy --starts 25

The detector (SAFE's MLP on the policy's own activations) is scored out of fold: each episode by a
detector that was trained on the other four fifths. Its AUC compares episodes of one task up to the
shortest of them. Interrupt it at will: recorded episodes are kept.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.libero_model import LIBERO_TINY
from mistjax.compilation import enable_cache
from mistjax.detect.data import Episodes
from mistjax.detect.detector import score_episodes
from mistjax.detect.features import DEFAULT_FEATURES
from mistjax.detect.from_runs import episodes_from_runs
from mistjax.detect.metrics import bootstrap, peak, roc_auc
from mistjax.detect.registry import fit_detector
from mistjax.envs.libero.env import LiberoEnv
from mistjax.envs.libero.episodes import STARTS
from mistjax.policies import PiPolicy
from mistjax.rollouts import Run, run_episodes
from mistjax.rollouts.summary import Rate

DETECTORS = ("safe_mlp", "trajectory_length")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is evaluated.

    Attributes:
        policy: checkpoint of `train_libero_policy`.
        out: run folder.
        results: where the numbers are kept.
        suite, tasks: which tasks; those that were demonstrated.
        starts: the first so many fixed start states of each.
        folds: parts that are held out in turn.
    """

    policy: Path = Path("runs/libero_tiny")
    out: Path = Path("runs/libero_eval")
    results: Path = Path("experiments/results/libero_policy.json")
    suite: str = "libero_object"
    tasks: tuple[int, ...] = (0, 2)
    starts: int = 25
    folds: int = 5


def record(config: Config) -> Run:
    """The episodes, recorded where they are not yet."""
    policy: Any = PiPolicy.load(config.policy, LIBERO_TINY)
    make_env = functools.partial(
        LiberoEnv,
        config.suite,
        image_size=policy.config.image_size,
        reflections=False,
        picture_every=policy.preset.execute_steps,
    )
    seeds = [STARTS * task + start for task in config.tasks for start in range(config.starts)]
    taps = DEFAULT_FEATURES.taps
    return run_episodes(policy, make_env, seeds, out=config.out, taps=taps, num_envs=1)


def out_of_fold(name: str, episodes: Episodes, folds: int) -> np.ndarray:
    """Each episode's highest score up to its task's shortest episode, by detectors that did not
    see it. Folds hold the same share of successes."""
    success = np.asarray(episodes.success)
    order = np.random.default_rng(0).permutation(len(episodes))
    order = order[np.argsort(success[order], kind="stable")]
    fold = np.empty(len(episodes), int)
    fold[order] = np.arange(len(episodes)) % folds
    scores = np.empty(len(episodes))
    for part in range(folds):
        held = episodes.take(fold == part)
        detector = fit_detector(name, episodes.take(fold != part), standardised=True)
        found = np.asarray(score_episodes(detector, held.features, held.mask))
        scores[fold == part] = peak(found, held.earliest_stop)
    return scores


def detection(config: Config, run: Run) -> dict[str, Any]:
    """AUC of each detector, with a bootstrap interval over episodes."""
    episodes = episodes_from_runs([run], DEFAULT_FEATURES)
    failed = ~np.asarray(episodes.success)
    counts = {"n": len(episodes), "failures": int(failed.sum())}
    if min(failed.sum(), (~failed).sum()) < config.folds:
        return counts | {"auc": None, "reason": f"fewer than {config.folds} of one outcome"}
    auc = {}
    for name in DETECTORS:
        scores = out_of_fold(name, episodes, config.folds)

        def metric(index, scores=scores):
            return roc_auc(scores[index], failed[index])

        auc[name] = {
            "value": roc_auc(scores, failed),
            "bootstrap95": bootstrap(metric, len(failed)),
        }
    return counts | {"auc": auc}


def main(config: Config) -> dict[str, Any]:
    """Evaluates, prints and writes the numbers."""
    run = record(config)
    tasks = sorted({row["task"] for row in run.finished})
    rates = {}
    for task in tasks:
        done = [row["success"] for row in run.finished if row["task"] == task]
        rates[task] = Rate(sum(done), len(done))
    stand_ins = any(row["info"]["stand_in_assets"] for row in run.finished)
    result = {
        "command": f"python -m experiments.eval_libero_policy --starts {config.starts}",
        "note": "stand-in assets: not comparable to published scores" if stand_ins else "",
        "policy_fingerprint": run.config["policy_fingerprint"],
        "errors": len(run.rows) - len(run.finished),
        "success": {t: {"k": r.k, "n": r.n, "wilson95": r.interval} for t, r in rates.items()},
        "detection": detection(config, run),
    }
    print(f"({result['note']})" if stand_ins else "", *(f"\n{t}: {r}" for t, r in rates.items()))
    print(json.dumps(result["detection"]))
    config.results.parent.mkdir(parents=True, exist_ok=True)
    config.results.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
