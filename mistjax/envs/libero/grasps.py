"""How a gripper that points down takes hold of an object: across it, or by its rim.

Objects are read off their meshes. One that fits between the fingers is held across its narrowest
side. A bowl or mug that does not is held by the wall, one finger inside, at a point of the rim
where the other finger and the hand have room.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TypeVar

import mujoco
import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull

from mistjax.envs.libero.simulator import Simulator

Point = Float[np.ndarray, "3"]
Angle = TypeVar("Angle", float, np.ndarray)

UP = np.array([0.0, 0.0, 1.0])
WIDEST = 0.076  # between the fingers
DEEPEST = 0.040  # of the fingers below the top of an object
LOWEST = 0.014  # of them above what it stands on
NEAR, SLACK = 0.008, 0.012

WALL, INWARD = 0.004, 0.009  # of a bowl: how thick it is, and how far inside of its outline
RIM_DEPTH = 0.022  # of the fingers below a rim: further down the wall is too slanted
RIM_SLACK = 0.05  # of a mug's wall with its handle: whatever is held by a rim is held firmly
RIM_OPENING = 0.07
RIM_ANGLES = np.arange(72) * np.pi / 36
MARGIN = 0.006  # to what stands beside a rim


def _room() -> Float[np.ndarray, "points 3"]:
    """What the outer finger and the hand fill around a grasp (m): along it, across it, up."""
    along, across = [0.012, 0.026, 0.04, 0.054], [-0.012, 0.0, 0.012]
    finger = np.meshgrid(along, across, [-0.005, 0.01, 0.025, 0.04])
    hand = np.meshgrid(np.linspace(-0.1, 0.1, 9), [-0.03, 0.0, 0.03], [0.07, 0.1, 0.13])
    return np.concatenate([np.reshape(grid, (3, -1)).T for grid in (finger, hand)])


ROOM = _room()


@dataclasses.dataclass(frozen=True)
class Shape:
    """An object as the gripper sees it from above, in the world's frame.

    Attributes:
        centre: middle of its outline, and its top's height.
        bottom: its lowest point's height.
        yaw: direction, in [0, pi), across its narrowest side.
        width: its extent in that direction.
        length: its extent across that direction.
    """

    centre: Point
    bottom: float
    yaw: float
    width: float
    length: float


@dataclasses.dataclass(frozen=True)
class Grasp:
    """Where fingers close, and on what.

    Attributes:
        at: the point between them.
        yaw: the direction in which they close.
        width: what is between them then.
        slack: how much further apart they may be and still hold it firmly.
        opening: how far they are apart before.
        near: how far off the point they may come down.
    """

    at: Point
    yaw: float
    width: float
    slack: float
    opening: float
    near: float


class Grasping:
    """The grasps of one object in a scene."""

    def __init__(self, simulator: Simulator, name: str) -> None:
        """Measures the object."""
        self._simulator, self._name = simulator, name
        self._hull = hull(simulator, name)
        self._own, self._others = simulator.geoms(name), obstacles(simulator, name)

    def shape(self) -> Shape:
        """The object where it is now."""
        simulator, name = self._simulator, self._name
        points = self._hull @ simulator.rotation(name).T + simulator.position(name)
        return measure(points, fingers_yaw(simulator))

    def grasp(self, item: Shape, way: Point) -> Grasp:
        """Across the object, or by its rim where it is too wide for that; `way` is from where it is
        to where it is put down."""
        if item.width > WIDEST + 0.01:
            return self._by_the_rim(item, way)
        at = item.centre - min(DEEPEST, 0.5 * (item.centre[2] - item.bottom) + 0.005) * UP
        at[2] = max(at[2], item.bottom + LOWEST)
        opening = min(item.width, WIDEST) - 0.002
        return Grasp(at, item.yaw, item.width, SLACK, opening, NEAR)

    def stands(self) -> bool:
        """Whether it touches anything but the robot."""
        pairs = self._simulator.data.contact.geom
        own, others = np.isin(pairs, self._own), np.isin(pairs, self._others)
        return bool((own & others[:, ::-1]).any())

    def top_beside(self, item: Shape) -> float:
        """Height of what stands within 3 cm of the object, such as the drawer that it lies in;
        minus infinity where nothing does."""
        middle, turn, half = self._boxes()
        half = np.einsum("gij,gj->gi", np.abs(turn), half)  # of boxes along the world's axes
        apart = np.maximum(np.abs(middle - item.centre) - half, 0.0)[:, :2]
        beside = np.linalg.norm(apart, axis=1) < item.width / 2 + 0.03
        return float((middle + half)[beside, 2].max(initial=-np.inf))

    def _by_the_rim(self, item: Shape, way: Point) -> Grasp:
        """Where the hand turns least and has room, here and where the object is put down; if the
        fingers are astride of the rim already, there."""
        grip, fingers = self._simulator.grip_position(), fingers_yaw(self._simulator)
        away = np.linalg.norm((grip - item.centre)[:2])
        astride = grip[2] < item.centre[2] and away < item.width / 2 + NEAR

        def turn(angle: float) -> float:
            behind = bool((grip - item.centre) @ _rim(item, angle)[1] < 0)
            return abs(half_turns(angle - fingers)) + 0.2 * behind

        angles = sorted(map(float, RIM_ANGLES), key=turn)
        there = dataclasses.replace(item, centre=item.centre + way)

        def free(*wheres: Shape) -> Iterator[float]:
            rims = ((a, [_rim(where, a) for where in wheres]) for a in angles)
            return (a for a, at in rims if astride or not any(self._blocked(*rim) for rim in at))

        angle = next(itertools.chain(free(item, there), free(item), angles))
        return Grasp(_rim(item, angle)[0], angle, WALL, RIM_SLACK, RIM_OPENING, 2 * NEAR)

    def _blocked(self, at: Point, out: Point) -> bool:
        """Whether the outer finger or the hand would be inside something."""
        points = at + ROOM @ np.stack([out, np.cross(UP, out), UP])
        middle, turn, half = self._boxes()
        inside = np.einsum("gpi,gij->gpj", points - middle[:, None], turn)
        return bool((np.abs(inside) < half[:, None] + MARGIN).all(-1).any())

    def _boxes(
        self,
    ) -> tuple[
        Float[np.ndarray, "geoms 3"], Float[np.ndarray, "geoms 3 3"], Float[np.ndarray, "geoms 3"]
    ]:
        """The others' bounding boxes: middles, axes as columns, and half sizes along these."""
        model, data, others = self._simulator.model, self._simulator.data, self._others
        turn = data.geom_xmat[others].reshape(-1, 3, 3)
        middle, half = np.split(model.geom_aabb[others], 2, axis=-1)
        return data.geom_xpos[others] + np.einsum("gij,gj->gi", turn, middle), turn, half


def turn_to_fit(item: Shape, half: Float[np.ndarray, "3"], axes: Float[np.ndarray, "3 3"]) -> float:
    """Radians to turn an object about the vertical, at most a quarter turn, so that it fits into a
    box of half sizes along its axes (columns); 0 unless it fits along one of them alone."""
    short, long = sorted(np.abs(axes[2]).argsort()[:2], key=lambda level: half[level])
    if not item.width < 2 * half[short] < item.length < 2 * half[long]:
        return 0.0
    x, y, _ = axes[:, short]
    return float(half_turns(np.arctan2(y, x) - item.yaw))


def measure(points: Float[np.ndarray, "points 3"], near: float = 0.0) -> Shape:
    """The shape of a cloud of points in the world's frame.

    Of all directions in which it is narrow, within 4 mm, it takes the nearest to `near`: a can is
    gripped without turning the hand.
    """
    yaws = np.arange(36) * np.pi / 36
    widths = np.ptp(points[:, :2] @ np.stack([np.cos(yaws), np.sin(yaws)]), axis=0)
    turns = np.abs(half_turns(yaws - near))
    best = int(np.where(widths < widths.min() + 0.004, turns, np.inf).argmin())
    low, high = points.min(axis=0), points.max(axis=0)
    centre = np.array([*(low + high)[:2] / 2, high[2]])
    width, length = widths[best], widths[best - len(yaws) // 2]
    return Shape(centre, float(low[2]), float(yaws[best]), float(width), float(length))


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


def obstacles(simulator: Simulator, name: str) -> list[int]:
    """Geoms that a gripper could bump into: solid, bounded, not the robot's and not `name`'s."""
    model, own = simulator.model, set(simulator.geoms(name))
    body = [model.body(index).name for index in model.geom_bodyid]
    return [
        geom
        for geom in range(model.ngeom)
        if geom not in own
        and not body[geom].startswith(("robot0", "gripper0"))
        and model.geom_contype[geom]
        and model.geom_rbound[geom] > 0
    ]


def fingers_yaw(simulator: Simulator) -> float:
    """The direction from finger to finger."""
    along = simulator.grip_rotation()[:, 0]
    return float(np.arctan2(along[1], along[0]))


def half_turns(angle: Angle) -> Angle:
    """The same direction across, in [-pi/2, pi/2)."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def _rim(item: Shape, angle: float) -> tuple[Point, Point]:
    """Where the wall is held in a direction from the middle, and that direction."""
    out = np.array([np.cos(angle), np.sin(angle), 0.0])
    return item.centre + (item.width / 2 - INWARD) * out - RIM_DEPTH * UP, out
