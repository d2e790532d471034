"""Paste: where a part of a picture is unlike any in clean episodes, the last good one stands there.

Only the cells that the monitor's novelty singles out (of 8 by 8), and those beside them, are
replaced, before the vision tower sees the picture; the rest is the sensor's. It is for dirt, glare
or a thing before the lens. A picture that is strange in more than `MOST` of its cells has no such
part, and one without a strange cell needs none: neither is repaired.

Cost: one more pass of the vision tower where it acts. Memory: one picture of each camera.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mistjax.detect.novelty.monitor import InputMonitor, cell_sizes
from mistjax.detect.novelty.motion import MotionModel
from mistjax.detect.novelty.reading import CELLS, colour_and_detail
from mistjax.steer.remedies.remedy import Proposal, Seen, stand_in

MOST = 0.5
"""Share of the cells that may be strange."""


@flax.struct.dataclass
class PatchPaste:
    """See the module.

    Attributes:
        weights, scale: of the level of a cell's colours and detail, see `Novelty`.
        motion: says from the last command whether the gripper is to be open.
        usual: size of the strangest cell, in standard deviations, that 95% of looks in clean
            episodes stay within, of each camera.
        cameras: names (static).
        size: height and width of a picture (static).
    """

    weights: Float[Array, "c x f"]
    scale: Float[Array, "c f"]
    motion: MotionModel
    usual: Float[Array, " c"]
    cameras: tuple[str, ...] = flax.struct.field(pytree_node=False)
    size: tuple[int, int] = flax.struct.field(pytree_node=False)

    @classmethod
    def of(
        cls, monitor: InputMonitor, usual: Float[Array, " c"], size: tuple[int, int]
    ) -> PatchPaste:
        """With the cells' novelty of a monitor of inputs."""
        cells = slice(-4 * CELLS**2, None)
        level = monitor.level
        return cls(
            level.weights[..., cells],
            level.scale[..., cells],
            monitor.motion,
            usual,
            monitor.cameras,
            size,
        )

    def blank(self, batch: int) -> Float[Array, "b h w 3"]:
        return jnp.zeros((batch, *self.size, 3))

    def note(self, seen: Seen, name: str) -> Float[Array, "b h w 3"]:
        return jnp.asarray(seen.obs.images[name], jnp.float32)

    def advance(self, note: Float[Array, "b h w 3"], seen: Seen) -> Float[Array, "b h w 3"]:
        return note

    def propose(self, note: Float[Array, "b h w 3"], seen: Seen, name: str) -> Proposal:
        shown, camera = self.note(seen, name), self.cameras.index(name)
        sizes = self.strangeness(*colour_and_detail(shown), seen.command, camera)
        usual = self.usual[camera]
        strange = ~(sizes <= usual)
        share = strange.mean((1, 2))
        there = _pixels(_wider(strange), self.size)
        pasted = jnp.where(there[..., None], note, shown)
        largest = jnp.where(jnp.isnan(sizes), jnp.inf, sizes).max((1, 2))
        return Proposal(
            stand_in(seen, name, pasted.astype(seen.obs.images[name].dtype)),
            (share > 0) & (share <= MOST),
            largest / usual,
        )

    def strangeness(
        self,
        grid: Float[Array, "b 8 8 3"],
        detail: Float[Array, "b 8 8"],
        command: Float[Array, "b e a"],
        camera: int,
    ) -> Float[Array, "b 8 8"]:
        """How unusual each cell of a picture is, in standard deviations; see `Reading`."""
        value = jnp.concatenate([grid.reshape(len(grid), -1), detail.reshape(len(grid), -1)], -1)
        sign = self.motion.signs(command[..., : self.motion.low.shape[0]])[:, -1]
        context = jnp.stack([jnp.ones_like(sign), sign], axis=1)
        return cell_sizes((value - context @ self.weights[camera]) / self.scale[camera][None])


def _wider(cells: Bool[Array, "b 8 8"]) -> Bool[Array, "b 8 8"]:
    """With the cells beside them: a patch covers the cells at its border in part."""
    padded = jnp.pad(cells, ((0, 0), (1, 1), (1, 1)))
    return jnp.stack(
        [padded[:, i : i + CELLS, j : j + CELLS] for i in range(3) for j in range(3)]
    ).any(0)


def _pixels(cells: Bool[Array, "b 8 8"], size: tuple[int, int]) -> Bool[Array, "b h w"]:
    """Which pixels are in these cells; those beyond the last whole cell go with it."""
    rows, columns = (
        jnp.minimum(jnp.arange(length) // (length // CELLS), CELLS - 1) for length in size
    )
    return cells[:, rows][:, :, columns]
