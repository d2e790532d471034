"""`run_episodes`: a policy in a batch of environments, in lock-step, one process.

All environments replan together: one batched inference, then each executes the first
`execute_steps` actions of its chunk. An environment that finishes takes the next seed before the
next inference; the batch keeps its size to the end of the run, so nothing recompiles.

An episode depends on its seed alone: inference i of seed s uses the key fold_in(key(s), i), and
each row has its own policy state. Which episodes share its batch makes no difference.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy, RawObs
from mistjax.rollouts.recorder import Inference, Recorder, Recording, robot_state
from mistjax.rollouts.run import Run, load_run, memory_run
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Json, Trace

_GIVE_UP_AFTER = 8


def run_episodes(
    policy: Policy,
    make_env: Callable[[], gym.Env],
    seeds: Sequence[int],
    *,
    out: str | Path | None = None,
    taps: Sequence[Tap] = (),
    aux: Sequence[str] = (),
    record_video: Collection[int] = (),
    num_envs: int = 8,
    perturbation: Mapping[str, Json] | None = None,
    task_options: Mapping[str, Json] | None = None,
    max_steps: int | None = None,
    retry_errors: bool = False,
    progress: bool = True,
) -> Run:
    """Runs one episode per seed and records it.

    With `out`, each episode is on disk before the next inference; after an interrupt the same call
    goes on with the seeds that are missing. A crash in the environment or the policy is recorded as
    an episode with an `error`, never as a failure.

    Args:
        policy: what acts.
        make_env: makes one environment, whose `info` says `success` at the end of an episode.
        seeds: which episodes.
        out: run folder, new or of the same configuration; None keeps everything in memory.
        taps: activations to record at each inference.
        aux: names in `Sample.aux` to record, besides score, threshold, alarm and edited.
        record_video: seeds of which pictures and a video are kept.
        num_envs: rows of the batch (at most one per seed).
        perturbation: for the environment's reset options.
        task_options: further reset options.
        max_steps: cut episodes off here; None leaves it to the environment.
        retry_errors: run seeds again that crashed in an earlier call.
        progress: show a bar.

    Raises:
        ValueError: repeated seeds, or `out` holds a run of another configuration.
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
        loop = _Loop(
            policy,
            make_env,
            slots=min(num_envs, len(seeds)),
            recording=Recording(tuple(taps), tuple(aux)),
            videos=frozenset(record_video),
            options=options,
            max_steps=max_steps,
        )
        stack.callback(loop.close)
        config = {
            "policy": policy.spec.name,
            "policy_fingerprint": policy.spec.fingerprint,
            "execute_steps": policy.spec.execute_steps,
            "env_id": loop.env_id,
            "perturbation": dict(perturbation or {}),
            "task_options": dict(task_options or {}),
            "taps": [str(tap) for tap in taps],
            "aux": list(aux),
            "max_steps": max_steps,
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
                writer.add(trace, loop.fps)
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


class _Slot:
    """One row of the batch: an environment and the episode in it."""

    def __init__(self, env: gym.Env):
        self.env = env
        self.raw: RawObs = {}
        self.recorder: Recorder | None = None
        self.fresh = False


class _Loop:
    """The environments, the policy state of each row, and the rounds."""

    def __init__(
        self,
        policy: Policy,
        make_env: Callable[[], gym.Env],
        *,
        slots: int,
        recording: Recording,
        videos: frozenset[int],
        options: dict[str, Json],
        max_steps: int | None,
    ):
        self._policy = policy
        self._make_env = make_env
        self._recording = recording
        self._videos = videos
        self._options = options
        self._max_steps = max_steps
        self._initial = jax.tree.map(jnp.asarray, policy.initial_state(slots))
        self._state = self._initial
        self._slots = [_Slot(make_env()) for _ in range(slots)]
        env = self._slots[0].env
        self.env_id = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        self.fps = float(env.metadata.get("render_fps", 10.0))

    def close(self) -> None:
        for slot in self._slots:
            slot.env.close()

    def episodes(self, seeds: Sequence[int]):
        """Yields a trace whenever an episode ends; the order is that of the ends."""
        waiting = list(seeds)[::-1]
        warm = False
        while True:
            for slot in self._slots:
                while slot.recorder is None and waiting:
                    if (crashed := self._begin(slot, waiting.pop())) is not None:
                        yield crashed
            active = [slot for slot in self._slots if slot.recorder is not None]
            if not active:
                return
            try:
                if not warm:  # so that no episode's timing contains the compilation
                    self._infer(active[0])
                    warm = True
                inference, self._state = self._infer(active[0])
            except Exception:
                error = traceback.format_exc()
                for slot in active:
                    yield self._end(slot, error)
                continue
            for row, slot in enumerate(self._slots):
                if slot.recorder is not None and (ended := self._act(slot, inference, row)):
                    yield ended

    def _begin(self, slot: _Slot, seed: int) -> Trace | None:
        """Starts an episode; returns its trace if the environment crashes already."""
        cameras = tuple(self._policy.spec.cameras.values()) if seed in self._videos else ()
        try:
            slot.raw, info = slot.env.reset(seed=seed, options=dict(self._options))
            slot.recorder = Recorder(seed, slot.raw, info, cameras)
        except Exception:
            slot.recorder = Recorder(seed, {"prompt": ""}, {}, ())
            return self._end(slot, traceback.format_exc())
        slot.fresh = True
        return None

    def _infer(self, stand_in: _Slot) -> tuple[Inference, Any]:
        """One inference for all rows; empty rows see what `stand_in` sees, and go nowhere."""
        slots = [slot if slot.recorder is not None else stand_in for slot in self._slots]
        raw = [slot.raw for slot in slots]
        fresh = np.array([slot.fresh for slot in self._slots])
        state = _reset_rows(self._state, self._initial, fresh)
        keys = _episode_keys(
            np.array([slot.recorder.seed for slot in slots]),  # type: ignore[union-attr]
            np.array([slot.recorder.inferences for slot in slots]),  # type: ignore[union-attr]
        )
        start = time.perf_counter()
        observation = self._policy.prepare(raw)
        sample = self._policy.sample(observation, keys, state=state, taps=self._recording.taps)
        jax.block_until_ready(sample)
        chunks = self._policy.finish(sample, raw)
        milliseconds = 1e3 * (time.perf_counter() - start)
        return Inference.read(self._recording, sample, chunks, milliseconds), sample.state

    def _act(self, slot: _Slot, inference: Inference, row: int) -> Trace | None:
        """Executes the first actions of a row's chunk; returns the trace if the episode ends."""
        recorder = slot.recorder
        assert recorder is not None
        slot.fresh = False
        try:
            chunk = recorder.inference(inference, row, slot.raw)
            for action in chunk[: self._policy.spec.execute_steps]:
                state = robot_state(slot.raw)
                slot.raw, _, terminated, truncated, info = slot.env.step(action)
                recorder.step(state, action, slot.raw, info)
                if terminated or truncated or recorder.steps == self._max_steps:
                    return self._end(slot, None)
        except Exception:
            return self._end(slot, traceback.format_exc())
        return None

    def _end(self, slot: _Slot, error: str | None) -> Trace:
        """Frees the slot; after a crash it gets a new environment."""
        recorder = slot.recorder
        assert recorder is not None
        perturbation = self._options.get("perturbation", {})
        trace = recorder.trace(self.env_id, self._policy.spec, perturbation, error)
        slot.recorder = None
        if error is not None:
            with contextlib.suppress(Exception):
                slot.env.close()
            slot.env = self._make_env()
        return trace


@jax.jit
def _episode_keys(seeds, inferences):
    """One key per row."""
    return jax.vmap(lambda seed, i: jax.random.fold_in(jax.random.key(seed), i))(seeds, inferences)


@jax.jit
def _reset_rows(state, initial, fresh):
    """`initial` in the rows where `fresh`, else `state`."""

    def choose(old, new):
        return jnp.where(fresh.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, state, initial)
