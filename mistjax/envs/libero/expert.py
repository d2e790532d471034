"""A scripted expert for LIBERO's pick-and-place tasks, on privileged state.

It is Markov: its action depends on the scene alone and no phase is remembered, so that it recovers
from a slip or a drop, and the same function gives demonstrations and corrections. How it takes hold
of things: see `grasps`.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import itertools

import mujoco
import numpy as np
from jaxtyping import Float

from mistjax.envs.libero.bddl import Problem
from mistjax.envs.libero.grasps import (
    NEAR,
    UP,
    Grasp,
    Grasping,
    Point,
    Shape,
    fingers_yaw,
    half_turns,
    turn_to_fit,
)
from mistjax.envs.libero.simulator import Simulator

Action = Float[np.ndarray, "7"]

METRES, RADIANS = 0.05, 0.5  # of one unit of action
OPEN, CLOSE = -1.0, 1.0
CLEARANCE = 0.05  # under the fingers when they travel
TRAVEL, ABOVE = 0.10, 0.05  # of what is carried above its place; of a place above its site
OVER, KEPT = 0.018, 0.025  # how far off its place a thing is lowered; how far off it goes on
ALIGNED = 0.06
THINNEST = 0.4  # of an object's width where it is held, such as a bottle's neck


@dataclasses.dataclass(frozen=True)
class Errand:
    """A fact of the goal: an object, and a site, or object, to put it into or onto."""

    relation: str
    item: str
    place: str


@dataclasses.dataclass(frozen=True)
class Aim:
    """How an object is put down.

    Attributes:
        at: the point of it that is brought over the place.
        place: 5 cm above a site's middle, or above an object's origin.
        low: height of its lowest point at which it is let go.
        within: how far off, seen from above, it still counts as put down.
        soft: whether it is let go as soon as it stands on something.
        turn: radians about the vertical by which it is turned before it is lowered.
    """

    at: Point
    place: Point
    low: float
    within: float
    soft: bool
    turn: float = 0.0

    @property
    def apart(self) -> Float[np.ndarray, "2"]:
        """From what is brought to the place, seen from above."""
        return (self.place - self.at)[:2]


def picks_and_places(problem: Problem) -> bool:
    """Whether that is all that the goal asks for."""
    return bool(problem.goal) and all(fact[0] in ("In", "On") for fact in problem.goal)


def in_order(errands: list[Errand]) -> list[Errand]:
    """What others are put on goes first."""
    items = {errand.item for errand in errands}
    return sorted(errands, key=lambda errand: errand.place in items)


class Expert:
    """Plays a simulator's task; see the module."""

    def __init__(self, simulator: Simulator) -> None:
        """Reads the task and measures its objects; ValueError if it is no pick-and-place."""
        goal = simulator.problem.goal
        if not picks_and_places(simulator.problem):
            raise ValueError(f"the expert picks and places; the goal is {goal}.")
        self._simulator = simulator
        self._errands = in_order([Errand(*fact) for fact in goal])
        self._grasping = {e.item: Grasping(simulator, e.item) for e in self._errands}

    @property
    def errand(self) -> Errand:
        """The present one: of what is held, or the first that is not done, or the last."""
        held = self._simulator.held()
        ours = (errand for errand in self._errands if errand.item == held)
        left = (errand for errand in self._errands if not self._is_done(errand))
        return next(itertools.chain(ours, left), self._errands[-1])

    def action(self) -> Action:
        """The clean action for the present state."""
        simulator, errand = self._simulator, self.errand
        grasping = self._grasping[errand.item]
        item, grip = grasping.shape(), simulator.grip_position()
        aim = self._aim(errand)
        grasp = grasping.grasp(item, np.array([*aim.apart, aim.low - item.bottom]))
        held, firm = simulator.held(), simulator.gap() < grasp.width + grasp.slack
        if held == errand.item and firm:
            stands = aim.soft and grasping.stands()
            return _carry(simulator, grip, item, aim, grasping.top_beside(item), stands)
        if self._is_done(errand):
            rise = 0.1 if simulator.gap() > grasp.opening else 0.0
            return _move(simulator, grip + rise * UP, None, OPEN)
        missed = simulator.gap() < THINNEST * grasp.width or held not in (None, errand.item)
        return _fetch(simulator, grip, item, grasp, self._floor(grip), missed)

    def shape(self) -> Shape:
        """The present errand's object where it is now."""
        return self._grasping[self.errand.item].shape()

    def place(self) -> Point:
        """What it is brought over; see `Aim`."""
        return self._aim(self.errand).place

    def _aim(self, errand: Errand) -> Aim:
        simulator = self._simulator
        site = mujoco.mj_name2id(simulator.model, mujoco.mjtObj.mjOBJ_SITE, errand.place)
        if site < 0:  # LIBERO asks that its origin be within 3 cm of the other's
            at, on = simulator.position(errand.item), simulator.position(errand.place)
            return Aim(at, on + ABOVE * UP, on[2] + 0.005, 0.03, soft=True)
        item, on = self._grasping[errand.item].shape(), simulator.data.site_xpos[site]
        half, axes = simulator.model.site_size[site], simulator.data.site_xmat[site].reshape(3, 3)
        turn = turn_to_fit(item, half, axes) if errand.relation == "In" else 0.0
        within = min(0.05, float((np.abs(axes) @ half)[:2].min()))
        return Aim(item.centre, on + ABOVE * UP, on[2] + 0.03, within, soft=False, turn=turn)

    def _floor(self, grip: Point) -> float:
        """How high the hand must be to leave what it put down; minus infinity away from all."""
        floor = -np.inf
        for errand in filter(self._is_done, self._errands):
            place, item = self._aim(errand).place, self._grasping[errand.item].shape()
            if np.linalg.norm((grip - place)[:2]) < 0.12:
                floor = max(floor, place[2] + TRAVEL, item.centre[2] + CLEARANCE + 0.03)
        return floor

    def _is_done(self, errand: Errand) -> bool:
        aim, bottom = self._aim(errand), self._grasping[errand.item].shape().bottom
        return bool(np.linalg.norm(aim.apart) < aim.within and bottom < aim.place[2])


def _fetch(
    simulator: Simulator, grip: Point, item: Shape, grasp: Grasp, floor: float, missed: bool
) -> Action:
    goal, off = grasp.at, np.linalg.norm((grip - grasp.at)[:2])
    if grip[2] < goal[2] + NEAR and off < grasp.near and not missed:
        return _move(simulator, goal, None, CLOSE)
    ready = abs(_turn(simulator, grasp.yaw)) < ALIGNED and simulator.gap() > grasp.opening
    if missed or off > grasp.near or not ready:
        above = np.array([*goal[:2], max(item.centre[2] + CLEARANCE, floor)])
        if off > 0.03 and grip[2] < above[2] - 0.03:
            above[:2] = grip[:2]
        leaving = grip[2] < floor - 0.03
        return _move(simulator, above, None if leaving else grasp.yaw, OPEN)
    return _move(simulator, goal, grasp.yaw, OPEN)


def _carry(
    simulator: Simulator, grip: Point, item: Shape, aim: Aim, beside: float, stands: bool
) -> Action:
    hangs = grip[2] - item.bottom
    travel, low = max(aim.place[2] + TRAVEL, beside + 0.05) + hangs, aim.low + hangs
    high = grip[2] > travel - 0.04
    if np.linalg.norm(aim.apart) < (OVER if high else KEPT) and abs(aim.turn) < ALIGNED:
        if stands or grip[2] < low + NEAR:
            return _move(simulator, grip, None, OPEN)
        # At full speed; a longer way down would leave less of it for the way sideways.
        goal = [*(grip[:2] + aim.apart), max(low, grip[2] - METRES / 2)]
    elif high:
        goal = [*(grip[:2] + aim.apart), travel]
    else:
        goal = [*grip[:2], travel]
    return _move(simulator, np.array(goal), fingers_yaw(simulator) + aim.turn, CLOSE)


def _turn(simulator: Simulator, yaw: float) -> float:
    """Radians about the vertical, at most a quarter turn, until the fingers close along `yaw`."""
    return float(half_turns(yaw - fingers_yaw(simulator)))


def _move(simulator: Simulator, goal: Point, yaw: float | None, gripper: float) -> Action:
    """Towards a grip position; upright, and turned to close along `yaw` unless it is None."""
    step = 2.0 * (goal - simulator.grip_position()) / METRES
    step *= 1.0 / max(1.0, np.abs(step).max())
    palm = simulator.grip_rotation()[:, 2]
    tilt = np.cross(palm, -UP)
    turn = 0.0 if yaw is None else _turn(simulator, yaw)
    spin = np.clip((tilt + turn * UP) / RADIANS, -0.5, 0.5)
    return np.array([*step, *spin, gripper])
