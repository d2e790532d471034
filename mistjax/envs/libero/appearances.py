"""Which thing each pixel of a LIBERO scene shows, and how things are coloured."""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mujoco
import numpy as np
from jaxtyping import Int32

from mistjax.envs.libero.changes import Rgb

ARENA, ROBOT = "arena", "robot"
ROBOT_BODIES = ("robot0", "gripper0", "mount0")


class Appearances:
    """The things of one model.

    Attributes:
        ids: thing -> its id in segmentations: 0 is the arena, 1 the robot, then the objects and
            fixtures.
        of_geom: the id of every geom.
    """

    def __init__(self, model: mujoco.MjModel, geoms: Mapping[str, Sequence[int]]) -> None:
        """`geoms`: those of each object and fixture."""
        self._model, self._geoms = model, {name: list(mine) for name, mine in geoms.items()}
        self._own = model.mat_rgba.copy(), model.geom_rgba.copy()
        self.ids = {name: i for i, name in enumerate((ARENA, ROBOT, *geoms))}
        self.of_geom: Int32[np.ndarray, " geoms"] = np.zeros(model.ngeom, np.int32)
        for geom in range(model.ngeom):
            if model.body(model.geom_bodyid[geom]).name.startswith(ROBOT_BODIES):
                self.of_geom[geom] = self.ids[ROBOT]
        for name, mine in self._geoms.items():
            self.of_geom[mine] = self.ids[name]

    def tint(self, tints: Mapping[str, tuple[Rgb, float]]) -> None:
        """Colours objects: name -> (colour, its share in the appearance); all others get their own
        appearance back."""
        model = self._model
        model.mat_rgba[:], model.geom_rgba[:] = self._own
        for name, (colour, share) in tints.items():
            mine = self._geoms[name]
            worn = [material for material in set(model.geom_matid[mine]) if material >= 0]
            for table, rows in ((model.mat_rgba, worn), (model.geom_rgba, mine)):
                table[rows, :3] += share * (np.array(colour) - table[rows, :3])
