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
)
from mistjax.envs.libero.simulator import Simulator

Action = Float[np.ndarray, "7"]

METRES, RADIANS = 0.05, 0.5  # of one unit of action
OPEN, CLOSE = -1.0, 1.0
CLEARANCE = 0.05  # under the fingers when they travel
ALIGNED = 0.06


@dataclasses.dataclass(frozen=True)
class Errand:
    """What goes where: an object, and a site, or object, to put it into or onto."""

    item: str
    place: str


@dataclasses.dataclass(frozen=True)
class Aim:
    """How an object is to be put down.

    Attributes:
        at: the point of it that is brought over the place.
        place: where to let go of it: 5 cm above a site's middle, or above an object's origin.
        low: height of its lowest point at which it is let go.
        stands: whether it stands on the place already, and can be let go higher than that.
        within: how far off, seen from above, it still counts as put down.
        turn: radians about the vertical by which it is turned before.
    """

    at: Point
    place: Point
    low: float
    stands: bool
    within: float
    turn: float = 0.0

    @property
    def off(self) -> float:
        """How far off it is, seen from above."""
        return float(np.linalg.norm((self.at - self.place)[:2]))


def picks_and_places(problem: Problem) -> bool:
    """Whether that is all that the goal asks for."""
    return bool(problem.goal) and all(fact[0] in ("In", "On") for fact in problem.goal)


class Expert:
    """Plays a simulator's task; see the module."""

    def __init__(self, simulator: Simulator) -> None:
        """Reads the task and measures its objects; ValueError if it is no pick-and-place."""
        goal = simulator.problem.goal
        if not picks_and_places(simulator.problem):
            raise ValueError(f"the expert picks and places; the goal is {goal}.")
        self._simulator = simulator
        self._errands = [Errand(*fact[1:]) for fact in goal]
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
        grasp, aim = grasping.grasp(item), self._aim(errand)
        firm = simulator.gap() < grasp.width + grasp.slack
        if simulator.held() == errand.item and firm:
            return _carry(simulator, grip, item, aim, grasping.top_beside(item))
        if self._is_done(errand):
            return _move(simulator, grip + 0.1 * UP, None, OPEN)
        return _fetch(simulator, grip, item, grasp, self._floor(grip))

    def shape(self) -> Shape:
        """The present errand's object where it is now."""
        return self._grasping[self.errand.item].shape()

    def place(self) -> Point:
        """Where to let go of it; see `Aim`."""
        return self._aim(self.errand).place

    def _aim(self, errand: Errand) -> Aim:
        simulator, item, other = self._simulator, errand.item, errand.place
        site = mujoco.mj_name2id(simulator.model, mujoco.mjtObj.mjOBJ_SITE, other)
        if site < 0:  # LIBERO asks that its origin be within 3 cm of the other's
            at, place = simulator.position(item), simulator.position(other) + 0.05 * UP
            return Aim(at, place, place[2] - 0.045, simulator.touch(item, other), 0.03)
        shape, place = self._grasping[item].shape(), simulator.data.site_xpos[site] + 0.05 * UP
        return Aim(shape.centre, place, place[2] - 0.02, False, 0.05, self._to_fit(shape, site))

    def _to_fit(self, item: Shape, site: int) -> float:
        """The turn with which an object fits into a narrow site, if it does so in one way only."""
        sides = self._simulator.model.site_size[site, :2]
        if not item.width < 2 * sides.min() < item.length:
            return 0.0
        axis = self._simulator.data.site_xmat[site].reshape(3, 3)[:, sides.argmin()]
        return float(half_turns(np.arctan2(axis[1], axis[0]) - item.yaw))

    def _floor(self, grip: Point) -> float:
        """Above what was put down already, where the hand is over it; else minus infinity."""
        done = [self._aim(errand).place for errand in self._errands if self._is_done(errand)]
        near = [place for place in done if np.linalg.norm((grip - place)[:2]) < 0.12]
        return max((place[2] + 0.10 for place in near), default=-np.inf)

    def _is_done(self, errand: Errand) -> bool:
        aim = self._aim(errand)
        return aim.off < aim.within and self._grasping[errand.item].shape().bottom < aim.place[2]


def _fetch(simulator: Simulator, grip: Point, item: Shape, grasp: Grasp, floor: float) -> Action:
    gap, goal = simulator.gap(), grasp.at
    off = np.linalg.norm(grip[:2] - goal[:2])
    turn = _turn(simulator, grasp.yaw)
    missed = gap < 0.4 * grasp.width
    if grip[2] < goal[2] + NEAR and off < grasp.near and not missed:
        return _move(simulator, goal, None, CLOSE)
    if missed or off > grasp.near or abs(turn) > ALIGNED or gap < grasp.opening:
        above = np.array([*goal[:2], max(item.centre[2] + CLEARANCE, floor)])
        if off > 0.03 and grip[2] < above[2] - 0.03:
            above[:2] = grip[:2]
        return _move(simulator, above, grasp.yaw, OPEN)
    return _move(simulator, goal, grasp.yaw, OPEN)


def _carry(simulator: Simulator, grip: Point, item: Shape, aim: Aim, beside: float) -> Action:
    hangs = grip[2] - item.bottom
    over = grip[:2] + (aim.place - aim.at)[:2]
    travel, low = max(aim.place[2] + 0.10, beside + 0.05) + hangs, aim.low + hangs
    if aim.off < (0.018 if grip[2] > travel - 0.04 else 0.025) and abs(aim.turn) < ALIGNED:
        if aim.stands or grip[2] < low + NEAR:
            return _move(simulator, grip, None, OPEN)
        goal = [*over, max(low, grip[2] - METRES / 2)]  # no faster down than sideways
    elif grip[2] < travel - 0.04:
        goal = [*grip[:2], travel]
    else:
        goal = [*over, travel]
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
