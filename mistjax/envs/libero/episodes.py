"""Which LIBERO episode a seed and reset options name, and how it starts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mistjax.envs.libero.changes import Change
from mistjax.envs.libero.perturbations import perturb
from mistjax.envs.libero.simulator import REST, SimulationError, Simulator
from mistjax.envs.libero.suites import Task

OPTIONS = ("task_id", "init_state", "perturbation")
STARTS = 50  # fixed start states of each published task
DRAWS, PUSHED = 10, 0.05  # metres sideways; all things fall a little


@dataclasses.dataclass(frozen=True)
class Episode:
    """What runs.

    Attributes:
        task_id: index in the suite.
        task: the task as published.
        init_state: index of the fixed start state; None if the start was drawn.
        change: what the perturbations made of it.
    """

    task_id: int
    task: Task
    init_state: int | None
    change: Change


def choose_episode(
    tasks: Sequence[Task], seed: int, options: Mapping[str, Any]
) -> tuple[Episode, Float[np.ndarray, " size"] | None]:
    """The episode, and the fixed state that it starts from, if any.

    Args:
        tasks: the suite.
        seed: start s % 50 of task s // 50, or start s of the task that `options` name.
        options: of `LiberoEnv.reset`.

    Raises:
        ValueError: an unknown option, task, start state or perturbation.
    """
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ValueError(f"unknown reset options {unknown}, expected {', '.join(OPTIONS)}")
    task_id, index = options.get("task_id"), seed
    if task_id is None:
        task_id, index = seed // STARTS % len(tasks), seed % STARTS
    task_id = check_task(tasks, task_id)
    task = tasks[task_id]
    rng = np.random.default_rng([seed, 2])
    change = perturb(task, options.get("perturbation", {}), rng, tasks)
    states = None if change.scene_changed else _init_states(task)
    if states is None:
        if "init_state" in options:
            raise ValueError("init_state is given, but this episode has no fixed start states")
        return Episode(task_id, task, None, change), None
    chosen = options.get("init_state", index % len(states))
    if not isinstance(chosen, int | np.integer) or not 0 <= chosen < len(states):
        raise ValueError(f"init_state is {chosen}, expected 0 to {len(states) - 1}")
    chosen = int(chosen)
    return Episode(task_id, task, chosen, change), states[chosen]


def start_episode(
    simulator: Simulator, seed: int, state: Float[np.ndarray, " size"] | None, settle: int
) -> None:
    """A fixed start state, or a drawn one in which nothing is pushed away while it settles.

    Args:
        simulator: the scene.
        seed: for what is drawn: fixtures' places, and without `state` those of objects too.
        state: of `Simulator.set_state`.
        settle: control steps at rest.

    Raises:
        SimulationError: ten draws in which objects push each other away.
    """
    names = [name for name, _ in simulator.problem.objects]
    for attempt in range(DRAWS):
        simulator.reset(seed + attempt * 2**20)
        if state is not None:
            simulator.set_state(state)
        before = np.stack([simulator.position(name)[:2] for name in names])
        for _ in range(settle):
            simulator.step(REST)
        after = np.stack([simulator.position(name)[:2] for name in names])
        if state is not None or np.linalg.norm(after - before, axis=1).max() < PUSHED:
            return
    raise SimulationError(f"{DRAWS} starts of {simulator.problem.language!r} fell apart at once.")


def check_task(tasks: Sequence[Task], task_id: int) -> int:
    """`task_id` itself; ValueError when the suite has none of that index."""
    if not isinstance(task_id, int | np.integer) or not 0 <= task_id < len(tasks):
        raise ValueError(f"task_id is {task_id}, expected 0 to {len(tasks) - 1}")
    return int(task_id)


@functools.lru_cache(maxsize=16)
def _init_states(task: Task) -> Float[np.ndarray, "states size"] | None:
    return task.init_states()
