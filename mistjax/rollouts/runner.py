"""`run_episodes`: a policy in a batch of environments, in lock-step.

All environments replan together: one batched inference, then each executes the first
`execute_steps` actions of its chunk, here or in worker processes. An environment that finishes
takes the next seed before the next inference; the batch keeps its size to the end of the run, so
nothing recompiles.

An episode depends on its seed alone: inference i of seed s uses the key fold_in(key(s), i), and
each slot has its own policy state. Which episodes share its batch, and which process steps its
environment, makes no difference. The size of the batch changes rounding (by some 1e-7), which
contact can amplify: runs agree bit for bit where they have the same `num_envs`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import gymnasium as gym
from tqdm import tqdm

from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy, PolicySpec
from mistjax.rollouts.loop import Loop
from mistjax.rollouts.plan import CrashedError, EpisodePlan, check_perturbation, check_seeds
from mistjax.rollouts.recorder import Recording
from mistjax.rollouts.run import Run, load_run, memory_run
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Json, Trace
from mistjax.rollouts.workers.host import MakeEnv
from mistjax.rollouts.workers.pool import EnvPool

_GIVE_UP_AFTER = 8


def run_episodes(
    policy: Policy,
    make_env: MakeEnv,
    seeds: Iterable[SupportsIndex],
    plan: EpisodePlan | None = None,
    *,
    out: str | Path | None = None,
    taps: Sequence[Tap] = (),
    aux: Sequence[str] = (),
    record_video: Iterable[SupportsIndex] | None = None,
    task_options: Mapping[str, Json] | None = None,
    settings: Mapping[str, Json] | None = None,
    progress: bool = True,
    **options: Any,
) -> Run:
    """Runs one episode per seed and records it.

    With `out`, each episode is on disk before the next inference; after an interrupt the same call
    resumes with the seeds that are missing. A crash in the environment or the policy, and an ending
    with `info["error"]`, is recorded as an episode with an `error`, never as a failure. An episode
    whose worker process dies is run once more, then recorded with an `error`; the worker's other
    episodes start again.

    Args:
        policy: what acts.
        make_env: makes one environment, whose `info` says `success` at the end of an episode.
        seeds: which episodes, in place of the plan's.
        plan: how they are run, see `EpisodePlan`; its environment is what `make_env` makes. With
            workers, `make_env` must be a function that can be imported, or functools.partial of
            one.
        out: run folder, new or of the same configuration; None keeps everything in memory.
        taps: activations to record at each inference.
        aux: names in `Sample.aux` to record, besides score, threshold, alarm and edited.
        record_video: seeds of which pictures and a video are kept; None is the plan's `videos`.
        task_options: reset options of the environment, besides the plan's perturbation.
        settings: what else a run on the same folder must agree in, e.g. options of `make_env`.
        progress: show a bar.
        **options: fields of the plan that are given here, e.g. `num_envs=4`.

    Raises:
        ValueError: repeated seeds, a setting out of range, a perturbation that the
            environment does not know, `make_env` cannot be sent to a worker, or `out` holds a run
            of another configuration.
        CrashedError: the first 8 episodes, or all if there are fewer, crashed. They are not stored.
    """
    seeds = check_seeds(seeds)
    plan = dataclasses.replace(plan or EpisodePlan(env=None), **options)
    slots = min(plan.batch_size, len(seeds))
    filmed = seeds[: plan.videos] if record_video is None else map(operator.index, record_video)
    reset = dict(task_options or {})
    if plan.perturbation:
        reset["perturbation"] = dict(plan.perturbation)
    with contextlib.ExitStack() as stack:
        envs = stack.enter_context(
            contextlib.closing(
                EnvPool(_checked(make_env, plan), slots, plan.workers, plan.executor)
            )
        )
        loop = Loop(
            policy,
            envs,
            slots=slots,
            recording=Recording(tuple(taps), tuple(aux)),
            videos=frozenset(filmed),
            options=reset,
            max_steps=plan.max_steps,
        )
        config = run_config(policy.spec, plan, envs.env_id, taps, aux, task_options, settings)
        return record_episodes(
            loop.episodes, seeds, config, plan, out=out, fps=envs.fps, progress=progress
        )


def run_config(
    spec: PolicySpec,
    plan: EpisodePlan,
    env_id: str,
    taps: Sequence[Tap],
    aux: Sequence[str],
    task_options: Mapping[str, Json] | None = None,
    settings: Mapping[str, Json] | None = None,
) -> dict[str, Json]:
    """What all episodes of a run agree in."""
    return {
        "policy": spec.name,
        "policy_fingerprint": spec.fingerprint,
        "execute_steps": spec.execute_steps,
        "env_id": env_id,
        "perturbation": dict(plan.perturbation),
        "task_options": dict(task_options or {}),
        "taps": [str(tap) for tap in taps],
        "aux": list(aux),
        "max_steps": plan.max_steps,
        **({"inputs": list(spec.inputs)} if spec.inputs else {}),
        **(settings or {}),
    }


def record_episodes(
    play: Callable[[Sequence[int]], Iterable[Trace]],
    seeds: Sequence[int],
    config: Mapping[str, Json],
    plan: EpisodePlan,
    *,
    out: str | Path | None = None,
    fps: float = 10.0,
    progress: bool = True,
) -> Run:
    """Stores what `play` yields of the seeds that a run folder lacks; see `run_episodes`."""
    traces: dict[int, Trace] = {}
    with contextlib.ExitStack() as stack:
        writer, stored = None, frozenset[int]()
        if out is not None:
            writer = stack.enter_context(RunWriter.open(out, config))
            stored = writer.seeds - (writer.crashed if plan.retry_errors else frozenset())
        todo = [seed for seed in seeds if seed not in stored]
        hidden = not progress or bool(os.environ.get("TQDM_DISABLE"))
        done = len(seeds) - len(todo)
        bar = stack.enter_context(tqdm(total=len(seeds), initial=done, unit="ep", disable=hidden))
        tally = _Tally(bar, give_up_after=min(_GIVE_UP_AFTER, len(seeds)))
        for trace in play(todo):
            if writer is None:
                traces[trace.seed] = trace
            else:
                writer.add(trace, fps)
            tally.add(trace)
    return memory_run(config, traces) if out is None else load_run(out)


def _checked(make_env: MakeEnv, plan: EpisodePlan) -> MakeEnv:
    """`make_env`, refusing an environment that does not know the plan's perturbation."""
    return functools.partial(_make, make_env, plan.perturbation) if plan.perturbation else make_env


def _make(make_env: MakeEnv, perturbation: Mapping[str, Json]) -> gym.Env:
    env = make_env()
    check_perturbation(env.unwrapped, perturbation)
    return env


class _Tally:
    """Progress, and giving up on a set-up that cannot work."""

    def __init__(self, bar: tqdm, give_up_after: int):
        self._bar = bar
        self._give_up_after = give_up_after
        self._successes = self._failures = self._errors = 0

    def add(self, trace: Trace) -> None:
        self._errors += trace.error is not None
        self._successes += trace.success is True
        self._failures += trace.success is False
        self._bar.set_postfix_str(
            f"{self._successes} succeeded, {self._failures} failed, {self._errors} crashed", False
        )
        self._bar.update()
        if self._errors == self._give_up_after and not self._successes + self._failures:
            raise CrashedError(self._errors, trace.error or "")
