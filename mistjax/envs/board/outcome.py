"""What counts on the board: which stone is held, what rests, success, and what went wrong.

The one definition for the MuJoCo environment and for the functional one. Every function takes the
arrays of one world, NumPy's or JAX's, and branches on none of their values. Stones are the triple
(x, y, z) of arrays [n], of which only the rows in `present` are there; -1 stands for no stone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mistjax.envs.board import scene as s

GRASP_REACH = 0.016
MIN_GRASP = 0.006
RESTING = 0.006
LIFTED = 0.010
RISEN = 0.040
RELEASED = s.STONE_RADIUS + 0.003
CAUSES = ("never_grasped", "wrong_stone", "timeout", "dropped", "wrong_cell")
PHASES = ("approach", "grasp", "carry", "place", "wrong_stone", "release")

Numbers = Any  # jax.Array | np.ndarray | float
Stones = tuple[Numbers, ...] | np.ndarray | jax.Array


class Task(NamedTuple):
    """What is asked for: the index of the goal stone, and its cell's centre (x, y) in metres."""

    goal: Numbers
    target: Numbers


class Moment(NamedTuple):
    """What is true of a world: the stone held, each stone's height above its rest, whether the goal
    stone lies on its cell, and whether the task is done."""

    held: Numbers
    lift: Numbers
    on_cell: Numbers
    success: Numbers


class Progress(NamedTuple):
    """Of an episode so far: steps taken, which stones were ever lifted, and the height above its
    rest at which the goal stone was last let go."""

    steps: Numbers
    lifted: Numbers
    release_lift: Numbers


def begin(stones: int) -> Progress:
    """The progress of an episode that has not begun."""
    return Progress(np.int32(0), np.zeros(stones, bool), np.float32(0.0))


def lift(stones: Stones) -> Numbers:
    """Height of each stone's centre over where it would rest below."""
    x, y, z = stones
    xp = _namespace(x)
    on_board = xp.maximum(xp.abs(x), xp.abs(y)) < s.BOARD_HALF
    return z - xp.where(on_board, s.BOARD_TOP, 0.0) - s.STONE_HALF_HEIGHT


def held(
    gripper: Numbers, opening: Numbers, command: Numbers, stones: Stones, present: Numbers
) -> Numbers:
    """The stone that stops the closed fingers: the nearest one in reach."""
    xp = _namespace(stones[0])
    square = sum((stones[i] - gripper[i]) ** 2 for i in range(3))
    distance = xp.where(present, xp.sqrt(square), xp.inf)
    nearest = distance.argmin()
    grasped = (command < 0) & (opening >= MIN_GRASP) & (distance.min() < GRASP_REACH)
    return xp.where(grasped, nearest, -1)


def observe(
    task: Task,
    gripper: Numbers,
    opening: Numbers,
    command: Numbers,
    stones: Stones,
    present: Numbers,
    tolerance: float,
) -> Moment:
    """What is true of a world.

    Args:
        task: what was asked for.
        gripper: its position (x, y, z).
        opening: half the gap between the fingers.
        command: 1 open, -1 closed.
        stones: see the module.
        present: which of them there are.
        tolerance: largest placement error per axis, as a share of the grid spacing.
    """
    xp = _namespace(stones[0])
    lifts = lift(stones)
    off = [xp.abs(pick(stones[i], task.goal) - task.target[i]) for i in (0, 1)]
    rests = xp.abs(pick(lifts, task.goal)) < RESTING
    on_cell = (xp.maximum(*off) <= tolerance * s.SPACING) & rests
    success = on_cell & (opening > RELEASED) & (gripper[2] > RISEN)
    return Moment(held(gripper, opening, command, stones, present), lifts, on_cell, success)


def advance(progress: Progress, task: Task, before: Moment, now: Moment) -> Progress:
    """The progress after a step from `before` to `now`."""
    xp = _namespace(now.lift)
    let_go = (before.held == task.goal) & (now.held != task.goal)
    risen = (xp.arange(now.lift.shape[0]) == now.held) & (now.lift > LIFTED)
    return Progress(
        progress.steps + 1,
        progress.lifted | risen,
        xp.where(let_go, pick(before.lift, task.goal), progress.release_lift),
    )


def failure_cause(progress: Progress, task: Task, now: Moment) -> Numbers:
    """Why the episode failed if it ended now, as an index of `CAUSES`.

    `never_grasped`: no stone was lifted. `wrong_stone`: only others were. `timeout`: still held, or
    on its cell but not finished. `dropped`: let go more than 1 cm above its rest. `wrong_cell`: put
    down elsewhere.
    """
    xp = _namespace(now.lift)
    let_go = xp.where(progress.release_lift > LIFTED, 3, 4)
    lifted = xp.where((now.held == task.goal) | now.on_cell, 2, let_go)
    never = xp.where(progress.lifted.any(), 1, 0)
    return xp.where(pick(progress.lifted, task.goal), lifted, never)


def phase(task: Task, gripper: Numbers, stones: Stones, now: Moment) -> Numbers:
    """What is going on, as an index of `PHASES`."""
    xp = _namespace(now.lift)

    def near(x, y, radius):
        return (gripper[0] - x) ** 2 + (gripper[1] - y) ** 2 < radius**2

    over_cell = near(task.target[0], task.target[1], s.SPACING / 2)
    x, y = (pick(stones[i], task.goal) for i in (0, 1))
    over_stone = near(x, y, s.STONE_RADIUS)
    free = xp.where(now.on_cell, 5, xp.where(over_stone, 1, 0))
    carried = xp.where(over_cell, 3, 2)
    other = (now.held >= 0) & (now.held != task.goal)
    return xp.where(other, 4, xp.where(now.held == task.goal, carried, free))


def pick(values: Numbers, index: Numbers) -> Numbers:
    """The value of one stone; in JAX by a mask, which fuses where a gather does not."""
    if isinstance(values, np.ndarray):
        return values[index]
    chosen = jnp.arange(values.shape[0]) == index
    if values.dtype == bool:
        return (values & chosen).any()
    return jnp.where(chosen, values, 0).sum()


def _namespace(x: Numbers) -> Any:
    return jnp if isinstance(x, jax.Array) else np
