"""Success of the tiny LIBERO policy, as it was taught and with objects moved, and its detectors.

    python -m experiments.studies.libero_policy                             # the shipped policy
    python -m experiments.studies.libero_policy --drawn 10 --results FILE   # and its detectors
    python -m experiments.studies.libero_policy --recorded RUN RUN          # played before

Nominal are the fixed start states, on which it was not trained. Detectors are compared where
LIBERO-PRO's position perturbation moves the asked object by 2.4 cm from where demonstrations had
it, about as far as places in them lie apart.

Every episode is scored by a detector that did not see it: in turn one fifth is held out, one
calibrates the alarm threshold and the other three train. The AUC compares episodes up to the
shortest of their task, where the control, an episode's length, says nothing. Alarms may come at any
time: there the control finds every failure too, but late. Next to that, SAFE's protocol: three
splits, each of which holds whole tasks out. Interrupt it at will: recorded episodes are kept.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Bool, Float

from experiments.record import command, write_results
from mistjax.compilation import enable_cache
from mistjax.detect.calibration.conformal import calibrate
from mistjax.detect.data import Episodes, split_tasks
from mistjax.detect.detector import score_episodes
from mistjax.detect.from_runs import episodes_from_runs
from mistjax.detect.inputs import DEFAULT_INPUT
from mistjax.detect.metrics import first_alarm, peak, roc_auc, summary
from mistjax.detect.novelty.build import refuse_unclean
from mistjax.detect.registry import fit_detector
from mistjax.envs.libero.env import LiberoEnv
from mistjax.envs.libero.episodes import STARTS
from mistjax.policies import LIBERO_TINY, PiPolicy
from mistjax.policies.protocol import Policy
from mistjax.rollouts import Run, load_run, run_episodes
from mistjax.rollouts.summary import by_task
from mistjax.stats import Rate, bootstrap

DETECTORS = ("safe_mlp", "linear_probe", "trajectory_length")
SPLITS = range(3)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is evaluated.

    Attributes:
        policy: checkpoint of `experiments.train.libero_pi0`.
        out: folder of the two runs.
        results: where the numbers are kept.
        suite, tasks: which tasks; those that were demonstrated.
        starts: nominal episodes of each: its first so many fixed start states.
        recorded: in place of playing those, run folders of fixed starts, each start in one of them.
        perturbation: what is changed in the others.
        drawn: perturbed episodes of each task, from drawn starts; 0 leaves that condition out.
        folds: parts that are held out in turn; 0 fits no detectors.
        alpha: promised bound on the chance of an alarm in a success.
        workers: processes that step the environments; 0 is this one.
    """

    policy: Path = Path("checkpoints/libero_pi0")
    out: Path = Path("runs/libero_eval")
    results: Path = Path("experiments/results/libero_policy.json")
    suite: str = "libero_object"
    tasks: tuple[int, ...] = tuple(range(10))
    starts: int = 2
    recorded: tuple[Path, ...] = ()
    perturbation: dict[str, float] = dataclasses.field(default_factory=lambda: {"position": 0.2})
    drawn: int = 0
    folds: int = 5
    alpha: float = 0.2
    workers: int = 0


def record(config: Config, name: str, perturbation: Mapping[str, float], starts: int) -> Run:
    """The episodes of a condition, recorded where they are not yet; task by task, since a scene is
    built anew wherever the task changes."""
    policy: Policy = PiPolicy.load(config.policy, LIBERO_TINY)
    make_env = functools.partial(
        LiberoEnv,
        config.suite,
        picture_every=policy.preset.execute_steps,
        **policy.preset.env_options,
    )
    return run_episodes(
        policy,
        make_env,
        [STARTS * task + start for task in config.tasks for start in range(starts)],
        out=config.out / name,
        taps=DEFAULT_INPUT.taps,
        perturbation=perturbation,
        num_envs=max(config.workers, 1),
        workers=config.workers,
    )


def cross_fit(
    name: str, episodes: Episodes, folds: int, alpha: float
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, "n t"]]:
    """Each episode's highest score up to its task's shortest episode, and its alarms, by detectors
    and thresholds that did not see it. Folds hold the same share of successes."""
    success = np.asarray(episodes.success)
    order = np.random.default_rng(0).permutation(len(episodes))
    order = order[np.argsort(success[order], kind="stable")]
    fold = np.empty(len(episodes), int)
    fold[order] = np.arange(len(episodes)) % folds
    peaks, alarms = np.empty(len(episodes)), np.zeros(episodes.mask.shape, bool)
    for part in range(folds):
        held, calibrating = fold == part, fold == (part + 1) % folds
        detector = fit_detector(name, episodes.take(~held & ~calibrating), standardised=True)
        scores = score_episodes(detector, episodes.features, jnp.asarray(episodes.mask))
        own = episodes.take(calibrating)
        threshold = calibrate(scores[calibrating], own.mask, own.success, alpha, band="constant")
        peaks[held] = peak(scores[held], episodes.earliest_stop[held])
        alarms[held] = threshold.alarms(scores, jnp.asarray(episodes.mask))[held]
    return peaks, alarms


def seen_unseen(episodes: Episodes) -> dict[str, dict[str, list[float]]]:
    """SAFE's protocol: each detector's AUC by earliest stop, split by split, in episodes of the
    tasks that it was fitted to and of tasks that it never saw."""
    table: dict[str, dict[str, list[float]]] = {}
    for name in DETECTORS:
        table[name] = {"val_seen": [], "val_unseen": []}
        for seed in SPLITS:
            split = split_tasks(episodes.task_id, seed)
            detector = fit_detector(name, episodes.take(split.train), standardised=True)
            for part, areas in table[name].items():
                held = episodes.take(getattr(split, part))
                scores = score_episodes(detector, held.features, jnp.asarray(held.mask))
                areas.append(summary(scores, held)["roc_auc"])
    return table


def read(config: Config) -> list[Run]:
    """The runs that were recorded before.

    Raises:
        ValueError: of another policy, not clean, or with an episode twice.
    """
    runs = [load_run(path) for path in config.recorded]
    refuse_unclean(PiPolicy.load(config.policy, LIBERO_TINY).spec, runs)
    seeds = [seed for run in runs for seed in run.seeds]
    if len(set(seeds)) < len(seeds):
        raise ValueError("an episode is in two of the runs: expected each start once.")
    return runs


def detection(config: Config, runs: Sequence[Run]) -> dict[str, Any]:
    """What each detector makes of the episodes."""
    episodes = episodes_from_runs(runs, DEFAULT_INPUT)
    failed = ~np.asarray(episodes.success)
    counts = {"n": len(episodes), "failures": int(failed.sum())}
    if min(failed.sum(), (~failed).sum()) < config.folds:
        return counts | {"reason": f"no detectors: fewer than {config.folds} of one outcome"}
    table = {}
    for name in DETECTORS:
        peaks, alarms = cross_fit(name, episodes, config.folds, config.alpha)
        first = first_alarm(alarms)
        caught = failed & (first >= 0)
        early = caught & (first < episodes.earliest_stop)
        table[name] = {
            "auc": _auc(lambda i, p=peaks: roc_auc(p[i], failed[i]), len(failed)),
            "auc_task_mean": _auc(
                lambda i, p=peaks: _task_mean(p[i], failed[i], episodes.task_id[i]), len(failed)
            ),
            "false_alarms": _rate(Rate(int((first >= 0)[~failed].sum()), int((~failed).sum()))),
            "detected": _rate(Rate(int(caught.sum()), int(failed.sum()))),
            "detected_by_earliest_stop": _rate(Rate(int(early.sum()), int(failed.sum()))),
            "median_alarm_step": (
                float(np.median(first[caught])) * LIBERO_TINY.execute_steps
                if caught.any()
                else None
            ),
        }
    return counts | {
        "alpha": config.alpha,
        "folds": config.folds,
        "detectors": table,
        "seen_unseen": seen_unseen(episodes),
    }


def _auc(metric: Callable[[np.ndarray], float], n: int) -> dict[str, Any]:
    return {"value": metric(np.arange(n)), "bootstrap95": bootstrap(metric, n)}


def _task_mean(score: np.ndarray, failed: np.ndarray, task: np.ndarray) -> float:
    """The mean AUC of the tasks with both outcomes, to which knowing that one task is harder adds
    nothing."""
    areas = [roc_auc(score[task == k], failed[task == k]) for k in np.unique(task)]
    return float(np.nanmean(areas))


def _rate(rate: Rate) -> dict[str, Any]:
    return {"k": rate.k, "n": rate.n, "wilson95": rate.interval}


def condition(config: Config, runs: Sequence[Run]) -> dict[str, Any]:
    """All numbers of one condition; detectors see the runs that recorded what they read."""
    rates = by_task(*runs)
    for task, rate in rates.items():
        print(f"{task}: {rate}")
    result = {
        "perturbation": runs[0].config["perturbation"],
        "errors": sum(len(run.rows) - len(run.finished) for run in runs),
        "success": {task: _rate(rate) for task, rate in rates.items()},
    }
    if config.folds:
        seen = [run for run in runs if set(DEFAULT_INPUT.features) <= set(run.config["taps"])]
        result["detection"] = detection(config, seen)
        print(json.dumps(result["detection"], indent=1))
    return result


def main(config: Config) -> dict[str, Any]:
    """Evaluates, prints and writes the numbers."""
    nominal = read(config) or [record(config, "nominal", {}, config.starts)]
    runs = {"nominal": nominal}
    if config.drawn:
        runs["perturbed"] = [record(config, "perturbed", config.perturbation, config.drawn)]
    result = {
        "command": command("experiments.studies.libero_policy"),
        "policy_fingerprint": nominal[0].config["policy_fingerprint"],
        **{name: condition(config, played) for name, played in runs.items()},
    }
    write_results(config.results, result)
    return result


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
