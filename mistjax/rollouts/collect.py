"""A checkpoint and an environment by name in, recorded episodes out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from mistjax.hooks.sites import Tap
from mistjax.policies import PRESETS
from mistjax.policies.kinds import read_policy
from mistjax.rollouts.run import Run
from mistjax.rollouts.runner import run_episodes

BOARD_ENV = "mistjax/Board-v0"


def load_policy(folder: str | Path, preset: str = "board") -> Any:
    """A checkpoint of any kind (see `read_policy`) for a robot preset; ValueError lists the presets
    when there is none of that name.
    """
    if preset not in PRESETS:
        raise ValueError(f"no robot preset is called {preset!r}; choose one of {sorted(PRESETS)}.")
    return read_policy(folder, PRESETS[preset])


def collect(
    policy: Any,
    out: Path,
    *,
    episodes: int,
    first_seed: int = 0,
    env: str = BOARD_ENV,
    perturbation: Mapping[str, float] | None = None,
    taps: Sequence[Tap] = (),
    aux: Sequence[str] = (),
    videos: int = 0,
    num_envs: int = 8,
) -> Run:
    """Runs episodes of consecutive seeds and records them; goes on where it stopped.

    Args:
        policy: what acts.
        out: run folder.
        episodes: how many.
        first_seed: the first seed.
        env: gymnasium id.
        perturbation: for the environment's reset options.
        taps: activations to record.
        aux: further outputs of the policy to record.
        videos: how many of the first episodes to record as video.
        num_envs: environments in lock-step.
    """
    import mistjax.envs  # noqa: F401 (registers the environments)

    seeds = range(first_seed, first_seed + episodes)
    return run_episodes(
        policy,
        functools.partial(gym.make, env),
        seeds,
        out=out,
        taps=taps,
        aux=aux,
        perturbation=perturbation,
        record_video=seeds[:videos],
        num_envs=num_envs,
    )
