"""`run_compiled`: the board's episodes as one program, recorded as `run_episodes` records them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import numpy as np
from tqdm import tqdm

from mistjax.envs.board.functional import Drawn, FunctionalBoard
from mistjax.envs.board.functional_faults import FaultyFunctionalBoard
from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy, PolicySpec
from mistjax.policies.wrapper import traceable
from mistjax.rollouts.compiled import CompiledRollouts, Recording, Round
from mistjax.rollouts.plan import EpisodePlan, check_seeds
from mistjax.rollouts.recorder import Inference, Recorder
from mistjax.rollouts.run import Run
from mistjax.rollouts.runner import record_episodes, run_config
from mistjax.rollouts.trace import Json, Trace

NUM_ENVS = 64
"""Slots of the batch by default; on two cores more of them gain little."""
SHARE = 4
"""Episodes of each slot that a process on a cluster plays at a time, and that die with it."""


def run_compiled(
    policy: Policy,
    seeds: Iterable[SupportsIndex],
    plan: EpisodePlan,
    *,
    out: str | Path | None = None,
    taps: Sequence[Tap] = (),
    aux: Sequence[str] = (),
    settings: Mapping[str, Json] | None = None,
    memory: float = 1e9,
    progress: bool = True,
) -> Run:
    """Runs one episode per seed of the board, with the physics that the plan names.

    An episode that has ended is on disk before the next rounds; after an interrupt the same call
    goes on with the seeds that are missing. On a Ray cluster the seeds are dealt out to processes,
    up to `SHARE` times the slots at a time; what one played is on disk when it has played all of
    it, and is played again by another one if it dies before.

    Args:
        policy: what acts; a JAX policy, or `MistPolicy` around one.
        seeds: which episodes.
        plan: how they are run; its perturbation, faults, `max_steps`, `num_envs`, `physics`,
            `devices`, `fsdp`, `executor` and, with Ray, `workers` count.
        out: run folder, new or of the same configuration; None keeps everything in memory.
        taps: activations to record at each inference.
        aux: names in `Sample.aux` to record, besides the monitor's.
        settings: what else a run on the same folder must agree in.
        memory: bytes that what is recorded may take between two visits to the host.
        progress: show a bar, and before it what one visit brings.

    Raises:
        ValueError: the policy cannot be traced, there are fewer devices, they do not divide the
            slots, one inference alone records more than `memory`, or `out` holds a run of another
            configuration.
        ImportError: the physics or the executor need a package that is not installed.
        RuntimeError: a process on the cluster died again and again.
    """
    traceable(policy)
    seeds, mixture, limit = check_seeds(seeds), plan.mixture(), plan.max_steps
    limited = {} if limit is None else {"max_steps": limit}
    board = FunctionalBoard(physics=plan.physics, **limited)
    every = policy.spec.execute_steps
    env = board if mixture is None else FaultyFunctionalBoard(mixture, board, every)
    filled = -(-len(seeds) // plan.devices) * plan.devices
    job = _Job(
        policy,
        env,
        plan,
        Recording(tuple(taps), tuple(aux), actions=True),
        slots=min(plan.num_envs or NUM_ENVS, filled),
        memory=memory,
        progress=progress,
    )
    settings = {"physics": env.physics, **(settings or {})}
    config = run_config(policy.spec, plan, env.env_id, taps, aux, settings=settings)
    play = _spread if plan.executor == "ray" else _Job.play
    return record_episodes(
        functools.partial(play, job), seeds, config, plan, out=out, progress=progress
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    """What `run_compiled` was asked for, but for the seeds; can be sent to another process."""

    policy: Policy
    env: FunctionalBoard | FaultyFunctionalBoard
    plan: EpisodePlan
    recording: Recording
    slots: int
    memory: float
    progress: bool

    def play(self, todo: Sequence[int]) -> Iterator[Trace]:
        """The seeds' episodes, in this process, in the order in which they end."""
        if not todo:
            return
        plan, env = self.plan, self.env
        devices = jax.devices()[: plan.devices]
        if len(devices) < plan.devices:
            raise ValueError(
                f"devices is {plan.devices}, and JAX sees {len(devices)}: ask for no more (a CPU "
                f"is several with XLA_FLAGS=--xla_force_host_platform_device_count={plan.devices})."
            )
        rollouts = CompiledRollouts(
            self.policy,
            env,
            num_envs=self.slots,
            devices=devices,
            fsdp=plan.fsdp,
            recording=self.recording,
        )
        drawn = env.draw_starts(todo, perturbation=plan.perturbation)  # type: ignore[arg-type]
        table = rollouts.table(todo, drawn.start, drawn.prompts)
        run = rollouts.prepare(table, memory=self.memory)
        if self.progress:
            tqdm.write(run.describe())
        build = Recorders(self.policy.spec, env, todo, drawn, plan.perturbation)
        while build.left:
            yield from build.add(run.advance())


def _spread(job: _Job, todo: Sequence[int]) -> Iterator[Trace]:
    """What `job.play` yields, by the processes of a Ray cluster."""
    from mistjax.rollouts.workers.ray import spread

    workers = job.plan.workers
    share = max(min(SHARE * job.slots, -(-len(todo) // workers)), 1)
    chunks = [todo[first : first + share] for first in range(0, len(todo), share)]
    quiet = dataclasses.replace(job, progress=False)
    for traces in spread(quiet.play, chunks, workers, devices=job.plan.devices):
        yield from traces


class Recorders:
    """Turns what rounds report into episodes."""

    def __init__(
        self,
        spec: PolicySpec,
        env: Any,
        seeds: Sequence[int],
        drawn: Drawn,
        perturbation: Mapping[str, Json],
    ) -> None:
        self._spec, self._env, self._perturbation = spec, env, perturbation
        self._info = [{"physics": env.physics, **info} for info in drawn.info]
        told = [text if isinstance(text, str) else text[0] for text in drawn.prompts]
        self._waiting = {
            i: Recorder(seed, {"prompt": told[i]}, self._info[i], ())
            for i, seed in enumerate(seeds)
        }

    @property
    def left(self) -> int:
        """Episodes that have not ended."""
        return len(self._waiting)

    def add(self, reported: Round) -> Iterator[Trace]:
        """The episodes that ended in some rounds."""
        for turn in range(len(reported.episode)):
            batch = Inference(
                chunks=reported.kept["chunks"][turn],
                monitor={name: x[turn] for name, x in reported.monitor.items()},
                features={name: x[turn] for name, x in reported.taps.items()},
                aux={name: x[turn] for name, x in reported.aux.items()},
                milliseconds=float("nan"),
            )
            for row in np.flatnonzero(reported.episode[turn] >= 0).tolist():
                at = int(reported.episode[turn, row])
                recorder, states = self._waiting[at], reported.kept["state"][turn, row]
                chunk = recorder.inference(batch, row, {})
                info, ended = self._info[at], bool(reported.ended[turn, row])
                if ended:
                    info = {**info, **self._outcome(reported, turn, row)}
                for step in range(reported.executed[turn, row]):
                    recorder.step(states[step], chunk[step], {}, info)
                if ended:
                    del self._waiting[at]
                    yield recorder.trace(
                        self._env.env_id, self._spec, dict(self._perturbation), None
                    )

    def _outcome(self, reported: Round, turn: int, row: int) -> dict[str, Json]:
        success = bool(reported.success[turn, row])
        cause = None if success else self._env.causes[reported.cause[turn, row]]
        steps = int(reported.steps[turn, row])
        return {"success": success, "failure_cause": cause, "step": steps}
