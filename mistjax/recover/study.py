"""Arms of a paired study: the bare policy and its monitored versions on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from mistjax.recover.artifact import load_mist
from mistjax.rollouts.run import Run
from mistjax.rollouts.runner import run_episodes

ALL_ARMS = ("bare", "monitor", "random", "mist")


def run_arms(
    policy: Any,
    mist: Path,
    make_env: Callable[[], gym.Env],
    seeds: Sequence[int],
    out: Path,
    *,
    arms: Sequence[str] = ALL_ARMS,
    perturbation: Mapping[str, float] | None = None,
    record_video: Collection[int] = (),
    num_envs: int = 8,
) -> dict[str, Run]:
    """Runs every arm on the same seeds, each into a folder of its name; goes on where it stopped.

    Args:
        policy: the bare policy.
        mist: folder of its monitor and remedy.
        make_env: makes one environment.
        seeds: which episodes.
        out: folder of the arms' runs.
        arms: of `ALL_ARMS`.
        perturbation: for the environment's reset options.
        record_video: seeds to record as video.
        num_envs: environments in lock-step.

    Returns:
        arm -> run.

    Raises:
        ValueError: an unknown arm, or `out` holds runs of something else.
        FileNotFoundError, FingerprintError: see `load_mist`.
    """
    runs = {}
    for arm in arms:
        acting = policy if arm == "bare" else load_mist(mist, policy, arm)
        explained = () if arm in ("bare", "monitor") else _explanations(policy)
        runs[arm] = run_episodes(
            acting,
            make_env,
            seeds,
            out=out / arm,
            aux=explained,
            record_video=record_video,
            perturbation=perturbation,
            num_envs=num_envs,
        )
    return runs


def _explanations(policy: Any) -> tuple[str, ...]:
    cameras = tuple(f"why/{name}" for name in policy.config.image_keys)
    return ("cause", *cameras, "why/text", "why/state")
