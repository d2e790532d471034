"""`run_episodes`: a policy in a batch of environments, in lock-step.

All environments replan together: one batched inference, then each executes the first
`execute_steps` actions of its chunk, here or in worker processes. An environment that finishes
takes the next seed before the next inference; the batch keeps its size to the end of the run, so
nothing recompiles.

An episode depends on its seed alone: inference i of seed s uses the key fold_in(key(s), i), and
each row has its own policy state. Which episodes share its batch, and which process steps its
environment, makes no difference. The size of the batch changes rounding (by some 1e-7), which
contact can amplify: runs agree bit for bit where they have the same `num_envs`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy
from mistjax.rollouts.loop import Loop
from mistjax.rollouts.recorder import Recording
from mistjax.rollouts.run import Run, load_run, memory_run
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Json, Trace
from mistjax.rollouts.workers.host import MakeEnv
from mistjax.rollouts.workers.pool import EnvPool, Executor

_GIVE_UP_AFTER = 8


def run_episodes(
    policy: Policy,
    make_env: MakeEnv,
    seeds: Sequence[int],
    *,
    out: str | Path | None = None,
    taps: Sequence[Tap] = (),
    aux: Sequence[str] = (),
    record_video: Collection[int] = (),
    num_envs: int = 8,
    workers: int = 0,
    executor: Executor = "process",
    perturbation: Mapping[str, Json] | None = None,
    task_options: Mapping[str, Json] | None = None,
    max_steps: int | None = None,
    settings: Mapping[str, Json] | None = None,
    retry_errors: bool = False,
    progress: bool = True,
) -> Run:
    """Runs one episode per seed and records it.

    With `out`, each episode is on disk before the next inference; after an interrupt the same call
    goes on with the seeds that are missing. A crash in the environment or the policy, and an ending
    with `info["error"]`, is recorded as an episode with an `error`, never as a failure. An episode
    whose worker process dies is run once more, then recorded with an `error`; the worker's other
    episodes start again.

    Args:
        policy: what acts.
        make_env: makes one environment, whose `info` says `success` at the end of an episode.
        seeds: which episodes.
        out: run folder, new or of the same configuration; None keeps everything in memory.
        taps: activations to record at each inference.
        aux: names in `Sample.aux` to record, besides score, threshold, alarm and edited.
        record_video: seeds of which pictures and a video are kept.
        num_envs: rows of the batch (at most one per seed).
        workers: processes that step the environments; 0 is this one. `make_env` must then be a
            function that can be imported, or functools.partial of one.
        executor: "process", or "ray" for workers that are Ray actors.
        perturbation: for the environment's reset options.
        task_options: further reset options.
        max_steps: cut episodes off here; None leaves it to the environment.
        settings: what else a run on the same folder must agree in, e.g. options of `make_env`.
        retry_errors: run seeds again that crashed in an earlier call.
        progress: show a bar.

    Raises:
        ValueError: repeated seeds, an unknown executor, `make_env` cannot be sent to a worker, or
            `out` holds a run of another configuration.
        RuntimeError: the first 8 episodes, or all if there are fewer, crashed.
    """
    if not seeds or len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**31:
        raise ValueError(f"seeds are {list(seeds)}: expected distinct numbers from 0 to 2**31 - 1.")
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}: expected at least 1.")
    options = dict(task_options or {})
    if perturbation:
        options["perturbation"] = dict(perturbation)
    with contextlib.ExitStack() as stack:
        envs = stack.enter_context(
            contextlib.closing(EnvPool(make_env, min(num_envs, len(seeds)), workers, executor))
        )
        loop = Loop(
            policy,
            envs,
            slots=min(num_envs, len(seeds)),
            recording=Recording(tuple(taps), tuple(aux)),
            videos=frozenset(record_video),
            options=options,
            max_steps=max_steps,
        )
        config = {
            "policy": policy.spec.name,
            "policy_fingerprint": policy.spec.fingerprint,
            "execute_steps": policy.spec.execute_steps,
            "env_id": envs.env_id,
            "perturbation": dict(perturbation or {}),
            "task_options": dict(task_options or {}),
            "taps": [str(tap) for tap in taps],
            "aux": list(aux),
            "max_steps": max_steps,
            **(settings or {}),
        }
        traces: dict[int, Trace] = {}
        writer = None
        if out is not None:
            writer = stack.enter_context(RunWriter.open(out, config))
            if retry_errors:
                writer.forget_errors()
        todo = [seed for seed in seeds if writer is None or seed not in writer.seeds]
        bar = stack.enter_context(
            tqdm(total=len(seeds), initial=len(seeds) - len(todo), unit="ep", disable=not progress)
        )
        tally = _Tally(bar, give_up_after=min(_GIVE_UP_AFTER, len(seeds)))
        for trace in loop.episodes(todo):
            if writer is None:
                traces[trace.seed] = trace
            else:
                writer.add(trace, envs.fps)
            tally.add(trace)
    return memory_run(config, traces) if out is None else load_run(out)


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
            raise RuntimeError(
                f"the first {self._errors} episodes all crashed, the last one with:\n{trace.error}"
            )
