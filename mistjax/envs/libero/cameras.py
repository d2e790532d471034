"""Pictures and segmentations of a LIBERO scene, pixel for pixel those of robosuite 1.4.

robosuite's own renderer never makes its OpenGL context current, so that two scenes in one process
draw into each other, and its segmentation reader overflows under numpy 2. Here each `Cameras` has a
context of its own, made current for every frame. A context belongs to the thread that made it.

Cost: 20 to 170 ms per view on one busy CPU core at any size, since it depends on the number of
triangles; without reflections, about half of that. Geoms outside of a view, which MuJoCo would draw
all the same, are left out: the wrist camera takes a third to a half of the time, and no pixel
changes. `MUJOCO_GL=egl` (the default) or `osmesa`.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import atexit
import os
import weakref
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Int32, UInt8

MAX_GEOMS = 1000
_NO_GL = (
    "LIBERO's pictures need OpenGL, and MUJOCO_GL={backend} fails here ({reason}): `mistjax doctor`"
    " says what to install, or make the environment with pictures=False."
)


class Cameras:
    """The named cameras of a model, all of one square size."""

    def __init__(
        self, model: mujoco.MjModel, names: tuple[str, ...], size: int, reflections: bool = True
    ) -> None:
        """Makes the OpenGL context.

        Raises:
            RuntimeError: OpenGL does not work here.
        """
        self._model, self._size = model, size
        self._ids = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name) for name in names]
        self._gl: Any = _context(size)
        self._gl.make_current()
        _OPEN.add(self)
        buffer = model.vis.global_
        buffer.offwidth, buffer.offheight = max(640, size), max(480, size)
        self._target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._target)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = reflections
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision shapes
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def pictures(self, data: mujoco.MjData) -> UInt8[np.ndarray, "cameras size size 3"]:
        """What the cameras see, upright."""
        self._gl.make_current()
        return np.stack([self._draw(data, camera) for camera in self._ids])

    def segmentation(self, data: mujoco.MjData) -> Int32[np.ndarray, "cameras size size"]:
        """The geom at each pixel of `pictures`, -1 where there is none."""
        self._gl.make_current()
        flags = [int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR)]
        self._scene.flags[flags] = 1
        try:
            views = [self._geoms(self._draw(data, camera)) for camera in self._ids]
        finally:
            self._scene.flags[flags] = 0
        return np.stack(views)

    def close(self) -> None:
        """Frees the context; the cameras cannot be used afterwards."""
        if self._gl is not None:
            self._gl.make_current()
            self._target.free()
            self._gl.free()
            self._gl = None

    def _draw(self, data: mujoco.MjData, camera: int) -> UInt8[np.ndarray, "size size 3"]:
        self._camera.fixedcamid = camera
        frame = mujoco.MjrRect(0, 0, self._size, self._size)
        everything, still = mujoco.mjtCatBit.mjCAT_ALL, mujoco.MjvPerturb()
        mujoco.mjv_updateScene(
            self._model, data, self._options, still, self._camera, everything, self._scene
        )
        if not self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION]:
            self._leave_out(data, camera)  # a mirror shows what lies outside of the view
        mujoco.mjr_render(frame, self._scene, self._target)
        pixels = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, frame, self._target)
        return pixels[::-1]

    def _leave_out(self, data: mujoco.MjData, camera: int) -> None:
        """Draws no geom whose bounding sphere lies outside of the camera's cone of view."""
        drawn = self._scene.geoms[: self._scene.ngeom]
        drawn = [geom for geom in drawn if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM]
        ids = [geom.objid for geom in drawn]
        # The camera looks along -z; half its angle of view lies to each side.
        turn = data.cam_xmat[camera].reshape(3, 3)
        x, y, z = ((data.geom_xpos[ids] - data.cam_xpos[camera]) @ turn).T
        half = np.radians(self._model.cam_fovy[camera]) / 2
        aside = np.maximum(np.abs(x), np.abs(y)) * np.cos(half) + z * np.sin(half)
        radius = self._model.geom_rbound[ids]  # 0 for planes, which have no bound
        outside = (radius > 0) & (np.maximum(aside, z) > radius)
        for geom, out in zip(drawn, outside, strict=True):
            if out:
                geom.type = mujoco.mjtGeom.mjGEOM_NONE

    def _geoms(self, colours: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
        """Geom ids from the colours that encode them in a drawn segmentation."""
        drawn = colours.astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
        ids = np.full(self._scene.ngeom + 1, -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                ids[geom.segid + 1] = geom.objid
        return ids[np.where(drawn <= self._scene.ngeom, drawn, 0)]


_OPEN: weakref.WeakSet[Cameras] = weakref.WeakSet()


def _close_all() -> None:
    """Frees every context before MuJoCo ends EGL: one that is freed later prints an error."""
    for cameras in list(_OPEN):
        cameras.close()


def _context(size: int):
    backend = os.environ.get("MUJOCO_GL") or "egl"
    try:
        if backend == "osmesa":
            from mujoco.osmesa import GLContext
        elif backend == "egl":
            from mujoco.egl import GLContext
        else:
            raise ValueError("expected egl or osmesa")
        context = GLContext(size, size)
        atexit.unregister(_close_all)
        atexit.register(_close_all)  # the last to register is the first to run
        return context
    except Exception as error:
        raise RuntimeError(_NO_GL.format(backend=backend, reason=error)) from error
