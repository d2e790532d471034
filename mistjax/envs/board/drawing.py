"""From the board's scene and MuJoCo state to the ray-caster's arrays.

`board_appearance` is made once an episode; `board_poses` once a frame. MuJoCo is imported where
its own state or renderer is used, so that a board without it can be drawn too. Unused stones are
parked under the table with no size, so that every episode, with two stones or ten, is drawn by the
same compiled program.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from mistjax.envs.board import scene as s
from mistjax.envs.board.raycast import Appearance, Poses

if TYPE_CHECKING:
    import mujoco

SOLIDS = (
    "board",
    "palm",
    "left_finger",
    "right_finger",
    *(f"stone{i}" for i in range(s.MAX_STONES)),
    "rod",
)
CAMERAS = ("front", "wrist")
PARKED = np.array([0.0, 0.0, -10.0], np.float32)
_BOXES, _LAST_STONE = 4, 4 + s.MAX_STONES


def solid_ids() -> dict[str, int]:
    """Name -> the id that `raycast.segmentation` gives its pixels."""
    return {"sky": -1, "table": 0} | {name: i + 1 for i, name in enumerate(SOLIDS)}


def nuisance_ids(goal: int) -> tuple[int, ...]:
    """Ids of what a task has nothing to do with: sky, table, and the stones that it does not ask
    for. The rest is what acts (the gripper), what is moved, and where it goes.

    Args:
        goal: index of the stone that the task asks for.
    """
    ids = solid_ids()
    others = (i for i in range(s.MAX_STONES) if i != goal)
    return (ids["sky"], ids["table"], *(ids[f"stone{i}"] for i in others))


def board_appearance(scene: s.BoardScene, stones: Sequence[str]) -> Appearance:
    """Sizes, colours and light of a scene with stones of these colours."""
    shine = scene.board_reflectivity, 0.0, scene.stone_reflectivity
    parked = ((1e-6,) * 3, (0.0,) * 3, 0.0)
    solids = [
        (s.BOARD_SIZE, scene.board_rgb, shine[0]),
        (s.PALM_SIZE, scene.gripper_rgb, shine[1]),
        *[(s.FINGER_SIZE, scene.finger_rgb, shine[1])] * 2,
        *[(s.STONE_SIZE, getattr(scene, f"{colour}_rgb"), shine[2]) for colour in stones],
        *[parked] * (s.MAX_STONES - len(stones)),
        ((*s.ROD_SIZE, 0.0), scene.gripper_rgb, shine[1]),
    ]
    sizes, rgb, specular = (_float(column) for column in zip(*solids, strict=True))
    dark = np.multiply(scene.table_rgb, 1 - scene.table_contrast)
    reach = (s.CELLS - 1) / 2 * s.SPACING + s.LINE_HALF_WIDTH
    return Appearance(
        box_size=sizes[:_BOXES],
        ellipsoid_size=sizes[_BOXES:_LAST_STONE],
        cylinder_size=sizes[:0, :2],
        capsule_size=sizes[_LAST_STONE:, :2],
        rgb=rgb,
        specular=specular,
        table_rgb=_float([scene.table_rgb, dark]),
        table_tile=_float(scene.table_tile),
        line=_float([s.SPACING, s.LINE_HALF_WIDTH, reach]),
        line_rgb=_float(scene.line_rgb),
        light=_float(scene.light),
        ambient=_float(scene.ambient),
        diffuse=_float(scene.diffuse),
        headlight=_float(scene.headlight),
        gain=_float(scene.gain),
        fovy=_float([scene.front.fovy, scene.wrist.fovy]),
    )


def board_poses(model: mujoco.MjModel, data: mujoco.MjData) -> Poses:
    """Where everything is. `data` must hold the kinematics of its state (`mj_kinematics`,
    `mj_camlight`)."""
    import mujoco

    position = np.tile(PARKED, (len(SOLIDS), 1))
    rotation = np.tile(np.eye(3, dtype=np.float32), (len(SOLIDS), 1, 1))
    for i, geom in enumerate(_geom_ids(model)):
        if geom >= 0:
            position[i], rotation[i] = data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3)
    cameras = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name) for name in CAMERAS]
    return Poses(
        position,
        rotation,
        data.cam_xpos[cameras].astype(np.float32),
        data.cam_xmat[cameras].reshape(-1, 3, 3).astype(np.float32),
    )


def _geom_ids(model: mujoco.MjModel) -> list[int]:
    import mujoco

    return [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, name) for name in SOLIDS]


def _float(values) -> Float[np.ndarray, "..."]:
    return np.asarray(values, np.float32)


_NO_GL = (
    "render='gl' needs OpenGL, which fails here ({reason}). Install Mesa (Debian: apt install "
    "libegl1 libgl1-mesa-dri libgl1) and set MUJOCO_GL=egl, or use render='raycast'"
)


def _needs_display() -> bool:
    """Whether MuJoCo chose GLFW on a Linux machine that has no display for it."""
    import mujoco

    glfw = getattr(mujoco, "GLContext", GlCamera).__module__ == "mujoco.glfw"
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return glfw and sys.platform == "linux" and not display


class GlCamera:
    """The same pictures by MuJoCo's OpenGL renderer, as the reference for the ray-caster."""

    def __init__(self, size: int) -> None:
        """Open a GL context for `size` x `size` pictures.

        Raises:
            RuntimeError: this machine has no usable OpenGL.
        """
        import mujoco

        self.size, self._renderer, self._model = size, None, None
        if _needs_display():
            raise RuntimeError(_NO_GL.format(reason="MuJoCo would open a window without a display"))
        probe = mujoco.MjModel.from_xml_string("<mujoco/>")
        try:
            mujoco.Renderer(probe, size, size).close()
        except Exception as error:
            raise RuntimeError(_NO_GL.format(reason=error)) from error

    def pictures(
        self, model: mujoco.MjModel, data: mujoco.MjData, scene: s.BoardScene
    ) -> UInt8[np.ndarray, "cameras size size 3"]:
        """Every camera's picture, front first."""
        import mujoco

        if model is not self._model or self._renderer is None:
            self.close()
            self._model, self._renderer = model, mujoco.Renderer(model, self.size, self.size)
        images = []
        for camera in CAMERAS:
            self._renderer.update_scene(data, camera)
            self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = scene.shadow
            images.append(self._renderer.render() * np.asarray(scene.gain))
        return np.clip(np.round(images), 0, 255).astype(np.uint8)

    def close(self) -> None:
        """Free the GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = self._model = None
