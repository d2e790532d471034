"""A checkpoint and an environment by name in, recorded episodes out."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from mistjax.hooks.sites import Tap
from mistjax.models.sources import fetch
from mistjax.policies import PRESETS
from mistjax.policies.load import read_policy
from mistjax.policies.presets import preset_of
from mistjax.rollouts.run import Run
from mistjax.rollouts.runner import run_episodes
from mistjax.rollouts.workers.pool import Executor

BOARD_ENV = "mistjax/Board-v0"
LIBERO_ENV = "mistjax/Libero-v0"


def load_policy(source: str | Path, preset: str | None = None) -> Any:
    """A checkpoint of any kind (see `read_policy`), wherever it is published (see `fetch`), for a
    robot preset (by default see `preset_of`); ValueError lists the presets when there is none of
    that name.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"no robot preset is called {preset!r}; choose one of {sorted(PRESETS)}.")
    folder = fetch(source)
    return read_policy(folder, PRESETS[preset or preset_of(source, folder)])


def collect(
    policy: Any,
    out: Path,
    *,
    episodes: int,
    first_seed: int = 0,
    env: str = BOARD_ENV,
    suite: str | None = None,
    tasks: Sequence[int] = (),
    env_options: Mapping[str, Any] | None = None,
    perturbation: Mapping[str, float | str] | None = None,
    taps: Sequence[Tap] = (),
    aux: Sequence[str] = (),
    videos: int = 0,
    num_envs: int | None = None,
    workers: int = 0,
    executor: Executor = "process",
) -> Run:
    """Runs episodes and records them; goes on where it stopped.

    Args:
        policy: what acts.
        out: run folder.
        episodes: how many, of consecutive seeds; with a suite, of each task.
        first_seed: the first seed; with a suite, the first fixed start of each task.
        env: gymnasium id.
        suite: a LIBERO suite in place of `env`.
        tasks: which tasks of the suite; () is all.
        env_options: further options of the environment, such as a preset's.
        perturbation: for the environment's reset options.
        taps: activations to record.
        aux: outputs of the policy to record, besides what it always `reports`.
        videos: how many of the first episodes to record as video.
        num_envs: environments in lock-step; None is 8, or for LIBERO one a worker. Give it where
            runs with different numbers of workers are to agree bit for bit.
        workers: processes that step the environments; 0 is this one.
        executor: "process", or "ray" for workers that are Ray actors.

    Raises:
        ValueError: tasks without a suite; see `suite_seeds` and `run_episodes`.
    """
    seeds: Sequence[int] = range(first_seed, first_seed + episodes)
    settings: dict[str, Any] = dict(env_options or {})
    drawn: dict[str, Any] = {}
    if suite is not None:
        env, settings = LIBERO_ENV, {"suite": suite, **settings}
        seeds = suite_seeds(suite, episodes, first_seed, tasks)
    elif tasks:
        raise ValueError(f"tasks are {list(tasks)}, and no LIBERO suite is named that has them.")
    if env == LIBERO_ENV and not videos:  # only what an inference looks at
        drawn["picture_every"] = policy.spec.execute_steps
    return run_episodes(
        policy,
        functools.partial(make_env, env, **settings, **drawn),
        seeds,
        out=out,
        taps=taps,
        aux=(*getattr(policy, "reports", ()), *aux),
        perturbation=perturbation,
        record_video=seeds[:videos],
        num_envs=num_envs or (max(workers, 1) if env == LIBERO_ENV else 8),
        workers=workers,
        executor=executor,
        settings=settings,
    )


def make_env(env: str, **options: Any) -> gym.Env:
    """One environment by gymnasium id; a function that worker processes can import."""
    import mistjax.envs  # noqa: F401 (registers the environments)

    return gym.make(env, **options)


def suite_seeds(suite: str, episodes: int, first: int = 0, tasks: Sequence[int] = ()) -> list[int]:
    """Seeds of so many episodes of each task of a LIBERO suite, from the fixed start `first` on;
    the tasks take turns. No tasks are all of them.

    Raises:
        ValueError: an unknown suite or task, a task twice, or more start states than it has.
        ImportError: LIBERO is not installed.
    """
    from mistjax.envs.libero.episodes import check_task
    from mistjax.envs.libero.suites import suite as tasks_of

    known = tasks_of(suite)
    chosen = [check_task(known, task) for task in tasks or range(len(known))]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"tasks are {chosen}: expected each at most once.")
    starts = len(known[0].init_states())  # type: ignore[arg-type]  # installed suites have them
    if not 0 <= first < first + episodes <= starts:
        raise ValueError(
            f"episodes {first} to {first + episodes - 1} of each task are asked for; {suite} has "
            f"fixed start states 0 to {starts - 1}."
        )
    return [task * starts + first + i for i in range(episodes) for task in chosen]
