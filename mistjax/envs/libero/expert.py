"""A scripted expert for "pick up X and place it in the basket", on privileged state.

It is Markov: its action depends on the scene alone and no phase is remembered, so that it recovers
from a slip or a drop, and the same function gives demonstrations and corrections. The gripper is
turned so that it closes across the object's narrowest side, which is read off the object's mesh.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses

import mujoco
import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull

from mistjax.envs.libero.simulator import Simulator

Action = Float[np.ndarray, "7"]
Point = Float[np.ndarray, "3"]

METRES, RADIANS = 0.05, 0.5  # of one unit of action
OPEN, CLOSE = -1.0, 1.0
WIDEST = 0.076  # between the fingers
CLEARANCE = 0.05  # under the fingers when they travel
DEEPEST = 0.040  # of the fingers below the top of an object
UP = np.array([0.0, 0.0, 1.0])
NEAR, ALIGNED, SLACK = 0.008, 0.06, 0.012


@dataclasses.dataclass(frozen=True)
class Errand:
    """What goes where: an object, and a site, or object, to put it into."""

    item: str
    place: str


@dataclasses.dataclass(frozen=True)
class Shape:
    """An object as the gripper sees it from above, in the world's frame.

    Attributes:
        centre: middle of its outline, and its top's height.
        bottom: its lowest point's height.
        yaw: direction, in [0, pi), across its narrowest side.
        width: its extent in that direction.
    """

    centre: Point
    bottom: float
    yaw: float
    width: float


def errand_of(simulator: Simulator) -> Errand:
    """The pick-and-place that the goal asks for.

    Raises:
        ValueError: the goal is something else.
    """
    facts = [fact for fact in simulator.problem.goal if fact[0] in ("In", "On")]
    if len(facts) != 1 or len(simulator.problem.goal) != 1:
        raise ValueError(
            f"the expert does one pick-and-place; the goal is {simulator.problem.goal}."
        )
    return Errand(*facts[0][1:])


class Expert:
    """Plays a simulator's task; see the module."""

    def __init__(self, simulator: Simulator) -> None:
        """Reads the task and measures its object; ValueError if it is not a pick-and-place."""
        self.errand = errand_of(simulator)
        self._simulator = simulator
        self._hull = hull(simulator, self.errand.item)

    def action(self) -> Action:
        """The clean action for the present state."""
        simulator, item = self._simulator, self.shape()
        grip, place = simulator.grip_position(), self.place()
        firm = simulator.gap() < item.width + SLACK
        if simulator.held() == self.errand.item and firm:
            return _carry(simulator, grip, item, place)
        if _is_at(item, place):
            return _move(simulator, grip + 0.1 * UP, None, OPEN)
        return _fetch(simulator, grip, item)

    def shape(self) -> Shape:
        """The object where it is now."""
        simulator, name = self._simulator, self.errand.item
        points = self._hull @ simulator.rotation(name).T + simulator.position(name)
        return measure(points, _fingers_yaw(simulator))

    def place(self) -> Point:
        """Where to let go: 5 cm above a site's middle, or above an object's origin."""
        simulator, name = self._simulator, self.errand.place
        site = mujoco.mj_name2id(simulator.model, mujoco.mjtObj.mjOBJ_SITE, name)
        at = simulator.data.site_xpos[site] if site >= 0 else simulator.position(name)
        return at + 0.05 * UP


def measure(points: Float[np.ndarray, "points 3"], near: float = 0.0) -> Shape:
    """The shape of a cloud of points in the world's frame.

    Of all directions in which it is narrow, within 4 mm, it takes the nearest to `near`: a can is
    gripped without turning the hand.
    """
    yaws = np.arange(36) * np.pi / 36
    widths = np.ptp(points[:, :2] @ np.stack([np.cos(yaws), np.sin(yaws)]), axis=0)
    turns = np.abs(_half_turns(yaws - near))
    best = int(np.where(widths < widths.min() + 0.004, turns, np.inf).argmin())
    low, high = points.min(axis=0), points.max(axis=0)
    centre = np.array([*(low + high)[:2] / 2, high[2]])
    return Shape(centre, float(low[2]), float(yaws[best]), float(widths[best]))


def hull(simulator: Simulator, name: str) -> Float[np.ndarray, "points 3"]:
    """Corners of an object's convex hull in its own frame: of its meshes and bounding boxes."""
    model, data = simulator.model, simulator.data
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    clouds = []
    for geom in simulator.geoms(name):
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
            mesh = model.geom_dataid[geom]
            start = model.mesh_vertadr[mesh]
            local = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
        else:
            local = corners * model.geom_aabb[geom, 3:] + model.geom_aabb[geom, :3]
        clouds.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    points = (np.concatenate(clouds) - simulator.position(name)) @ simulator.rotation(name)
    return points[ConvexHull(points).vertices]


def _is_at(item: Shape, place: Point) -> bool:
    return bool(np.linalg.norm(item.centre[:2] - place[:2]) < 0.05 and item.bottom < place[2])


def _fetch(simulator: Simulator, grip: Point, item: Shape) -> Action:
    depth = min(DEEPEST, 0.5 * (item.centre[2] - item.bottom) + 0.005)
    goal = item.centre - depth * UP
    goal[2] = max(goal[2], item.bottom + 0.008)
    gap = simulator.gap()
    off = np.linalg.norm(grip[:2] - goal[:2])
    turn = _turn(simulator, item.yaw)
    missed = gap < 0.7 * item.width
    if grip[2] < goal[2] + NEAR and off < NEAR and not missed:
        return _move(simulator, goal, None, CLOSE)
    if missed or off > NEAR or abs(turn) > ALIGNED or gap < min(item.width, WIDEST) - 0.002:
        above = np.array([*goal[:2], item.centre[2] + CLEARANCE])
        if off > 0.03 and grip[2] < above[2] - 0.03:
            above[:2] = grip[:2]
        return _move(simulator, above, item.yaw, OPEN)
    return _move(simulator, goal, item.yaw, OPEN)


def _carry(simulator: Simulator, grip: Point, item: Shape, place: Point) -> Action:
    hangs = grip[2] - item.bottom
    travel = place[2] + 0.10 + hangs
    off = np.linalg.norm(item.centre[:2] - place[:2])
    if off < 0.02:
        low = place[2] - 0.02 + hangs
        if grip[2] < low + NEAR:
            return _move(simulator, grip, None, OPEN)
        goal = np.array([*(place[:2] - item.centre[:2] + grip[:2]), low])
    elif grip[2] < travel - 0.04:
        goal = np.array([*grip[:2], travel])
    else:
        goal = np.array([*(place[:2] - item.centre[:2] + grip[:2]), travel])
    return _move(simulator, goal, None, CLOSE)


def _half_turns(angle):
    """The same direction across, in [-pi/2, pi/2)."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _fingers_yaw(simulator: Simulator) -> float:
    """The direction from finger to finger."""
    along = simulator.grip_rotation()[:, 0]
    return float(np.arctan2(along[1], along[0]))


def _turn(simulator: Simulator, yaw: float) -> float:
    """Radians about the vertical, at most a quarter turn, until the fingers close along `yaw`."""
    return float(_half_turns(yaw - _fingers_yaw(simulator)))


def _move(simulator: Simulator, goal: Point, yaw: float | None, gripper: float) -> Action:
    """Towards a grip position; upright, and turned to close along `yaw` unless it is None."""
    step = 2.0 * (goal - simulator.grip_position()) / METRES
    step *= 1.0 / max(1.0, np.abs(step).max())
    palm = simulator.grip_rotation()[:, 2]
    tilt = np.cross(palm, -UP)
    turn = 0.0 if yaw is None else _turn(simulator, yaw)
    spin = np.clip((tilt + turn * UP) / RADIANS, -0.5, 0.5)
    return np.array([*step, *spin, gripper])
