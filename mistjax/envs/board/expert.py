"""A scripted expert on privileged state: the clean action for whatever situation it finds.

It is Markov: no phase is remembered, so its action is right after a slip, a drop, or a wrong stone,
and the same function gives demonstrations and recovery actions. Far from its goal it flies at
travel height and descends along a funnel as it gets near. Speed words set the step length, height
words the travel height of a carried stone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from mistjax.envs.board import scene as s
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.board.instructions import Task
from mistjax.envs.board.physics import STEP, World

SPEED = {"slowly": 0.35, "": 0.65, "quickly": 1.0}
TRAVEL_HEIGHT = {"low": 0.055, "": 0.080, "high": 0.110}
APPROACH_HEIGHT = 0.080
GRASP_HEIGHT = 0.006
BESIDE_BOARD = 0.0105
OCCUPIED = 2 * s.STONE_RADIUS

Action = Float[np.ndarray, "4"]
Place = Float[np.ndarray, "2"]


def expert_action(world: World, task: Task) -> Action:
    """The expert's action [dx, dy, dz, gripper] in [-1, 1]; it stays still once the task is
    done."""
    stone, place = _errand(world, task)
    if world.held == stone:
        return _carry(world, task, stone, place)
    if world.held is not None:
        return _carry(world, task, world.held, _parking(world, world.held))
    if _is_placed(world, stone, place):
        return _leave(world, task)
    return _fetch(world, task, stone)


def recovery_action(env: gym.Env) -> Action:
    """The expert's action for the state a board environment, wrapped or not, is in now."""
    board = env.unwrapped
    if not isinstance(board, BoardEnv):
        raise ValueError(f"the expert plays {BoardEnv.__name__}, not {type(board).__name__}")
    return expert_action(board.world, board.episode.task)


def expert_observations(
    seeds: Iterable[int], *, every: int = 5, perturbation: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """What a policy would see along the expert's episodes, each `every`-th step.

    A visual perturbation changes the pictures and nothing else: with the same seeds, observation i
    is of the same situation under each of them.
    """
    env, seen = BoardEnv(), []
    for seed in seeds:
        raw, _ = env.reset(seed=seed, options={"perturbation": dict(perturbation or {})})
        step, ended = 0, False
        while not ended:
            if step % every == 0:
                seen.append(raw)
            raw, _, success, truncated, _ = env.step(recovery_action(env))
            step, ended = step + 1, success or truncated
    return seen


def _errand(world: World, task: Task) -> tuple[int, Place]:
    """The stone to move next and where to: the task's own, unless another stone occupies the target
    cell."""
    goal, target = world.colours.index(task.colour), s.cell_xy(task.row, task.column)
    away = np.linalg.norm(world.stones[:, :2] - target, axis=1)
    away[goal] = np.inf
    blocker = int(away.argmin())
    if away[blocker] > OCCUPIED:
        return goal, target
    if world.held == goal:
        return goal, _parking(world, goal)
    return blocker, _parking(world, blocker)


def _parking(world: World, stone: int) -> Place:
    """The nearest place in the supply strip that no other stone is close to."""
    spots = np.array([[x, y] for x in (0.145, 0.170) for y in np.linspace(-0.12, 0.12, 13)])
    others = np.delete(world.stones[:, :2], stone, axis=0)
    gap = np.linalg.norm(spots[:, None] - others, axis=2).min(axis=1)
    far = np.linalg.norm(spots - world.gripper[:2], axis=1)
    return spots[np.where(gap > 0.055, far, np.inf).argmin()]


def _is_placed(world: World, stone: int, place: Place) -> bool:
    off = np.abs(world.stones[stone, :2] - place).max()
    return bool(off < 0.3 * s.SPACING and world.rests(stone))


def _carry(world: World, task: Task, stone: int, place: Place) -> Action:
    at = world.stones[stone]
    floor = s.support_height(place) + s.STONE_HALF_HEIGHT + GRASP_HEIGHT + 0.001
    over = np.linalg.norm(world.gripper[:2] - place) < 0.006
    if over and world.gripper[2] < floor + 0.002 and np.linalg.norm(at[:2] - place) < 0.008:
        return _still(1.0)
    slip = np.clip(at[:2] - world.gripper[:2], -0.008, 0.008)
    return _move(world, task, _funnel(world, place - slip, floor, TRAVEL_HEIGHT[task.height]), -1.0)


def _fetch(world: World, task: Task, stone: int) -> Action:
    at, low = world.stones[stone].copy(), world.stones[stone, 2] + GRASP_HEIGHT
    if at[0] > s.BOARD_HALF:
        at[0] = max(at[0], s.BOARD_HALF + BESIDE_BOARD)
    if np.linalg.norm(world.gripper[:2] - at[:2]) < 0.006 and world.gripper[2] < low + 0.002:
        return _still(-1.0)
    if _is_narrow(world):
        return np.array([0.0, 0.0, 0.3, 1.0])
    return _move(world, task, _funnel(world, at[:2], low, APPROACH_HEIGHT), 1.0)


def _leave(world: World, task: Task) -> Action:
    if _is_narrow(world) or world.gripper[2] >= APPROACH_HEIGHT:
        return _still(1.0)
    return _move(world, task, np.array([*world.gripper[:2], APPROACH_HEIGHT]), 1.0)


def _is_narrow(world: World) -> bool:
    """The fingers are not yet wide enough to pass around a stone."""
    return world.opening < s.STONE_RADIUS + 0.004


def _funnel(world: World, xy: Place, low: float, high: float) -> Float[np.ndarray, "3"]:
    """The next point to head for: up first, then over, then down as the horizontal error
    shrinks."""
    error = np.linalg.norm(world.gripper[:2] - xy)
    height = low if error < 0.004 else min(high, low + (high - low) * (error - 0.004) / 0.03)
    if error > 0.012 and world.gripper[2] < height - 0.018:
        return np.array([*world.gripper[:2], high])
    return np.array([*xy, height])


def _move(world: World, task: Task, goal: Float[np.ndarray, "3"], grip: float) -> Action:
    step = (goal - world.gripper) / STEP
    length = np.linalg.norm(step)
    return np.array([*(step * min(1.0, SPEED[task.speed] / max(length, 1e-9))), grip])


def _still(grip: float) -> Action:
    return np.array([0.0, 0.0, 0.0, grip])
