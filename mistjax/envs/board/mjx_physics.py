"""The board's physics by MuJoCo's own solver in JAX (MJX): a cross-check of `kinematic`.

The scene is C MuJoCo's, but for the stones where they meet boxes: MJX has no contact of an
ellipsoid and a box, so towards the fingers a stone is a convex mesh, and towards the board a
coarser one. Towards the table and each other stones are the ellipsoids that they are.

Contact is solved here, so stones tilt, roll and slip; that costs thousands of times what the rules
of `kinematic` do. The solver begins every substep anew: begun at its last accelerations, in 32 bits
its line search often finds nothing better and stays there, until a grasped stone is flung away.
Needs mujoco-mjx of MuJoCo's version: the extra `mjx`.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.envs.board import scene as s
from mistjax.envs.board.drawing import PARKED
from mistjax.envs.board.kinematic import CLOSED, OPEN, SINK, STEP, Numbers, Triple

GRIP = ((0, 12), (40, 8), (70, 4))
FOOT = ((0, 8), (70, 4))
"""Rings of a stone's vertices: latitude in degrees, how many."""
STONES: int = 6
"""How many there can be: those of an unperturbed board. Cost grows with their square."""
PAIRS, CONTACTS = STONES, 4 * STONES
"""How many of the nearest pairs of geoms MJX looks at, and of the deepest contacts it solves, of
each kind: those of all stones on the board."""
_ARM = 5  # slides x, y, z and two fingers come before the stones' free joints
_FAR = 5.0  # metres from the board to stones that are not there


class Body(NamedTuple):
    """Everything that moves, in MuJoCo's coordinates; the rest is what `kinematic.Body` says. Of
    one world, or of a batch.

    Attributes:
        qpos, qvel: positions and speeds.
        command: 1 open, -1 closed.
    """

    qpos: Float[Array, "*b q"]
    qvel: Float[Array, "*b v"]
    command: Numbers

    @property
    def gripper(self) -> Triple:
        return tuple(self.qpos[..., i] for i in range(3))

    @property
    def opening(self) -> Numbers:
        return (self.qpos[..., 3] + self.qpos[..., 4]) / 2

    @property
    def shift(self) -> Numbers:
        return (self.qpos[..., 3] - self.qpos[..., 4]) / 2

    @property
    def stones(self) -> Triple:
        free = self._free

        def padded(axis: int) -> Array:
            nowhere = jnp.full((*free.shape[:-2], s.MAX_STONES - STONES), PARKED[axis])
            return jnp.concatenate([free[..., axis], nowhere], axis=-1)

        return tuple(map(padded, range(3)))

    @property
    def rotation(self) -> Float[Array, "*b n 3 3"]:
        """Axes of each stone, as columns."""
        axes = _axes(self._free[..., 3:])
        rest = (*axes.shape[:-3], s.MAX_STONES - STONES, 3, 3)
        return jnp.concatenate([axes, jnp.broadcast_to(jnp.eye(3), rest)], axis=-3)

    @property
    def _free(self) -> Float[Array, "*b stones 7"]:
        """Position and quaternion of each stone."""
        return self.qpos[..., _ARM:].reshape(*self.qpos.shape[:-1], STONES, 7)


def at_rest(gripper: Triple, stones: Triple) -> Body:
    """See `kinematic.at_rest`; stones under the table are laid far away from the board."""
    model, _ = load()
    x, y, z = (along[:STONES] for along in stones)
    there, row = z > 0, jnp.arange(STONES, dtype=jnp.float32)
    place = (
        jnp.where(there, x, _FAR),
        jnp.where(there, y, row * (4 * s.STONE_RADIUS)),
        jnp.where(there, z, s.STONE_HALF_HEIGHT) - SINK,
    )
    one, zero = jnp.ones(STONES), jnp.zeros(STONES)
    free = jnp.stack([*place, one, zero, zero, zero], axis=1).ravel()
    arm = jnp.stack([*gripper, jnp.float32(OPEN), jnp.float32(OPEN)])
    return Body(jnp.concatenate([arm, free]), jnp.zeros(model.nv), jnp.float32(1.0))


def control_step(body: Body, action: jax.Array, present: jax.Array) -> Body:
    """See `kinematic.control_step`.

    On a CPU the worlds of a batch take turns. The batched Cholesky factorisation of jaxlib 0.10.2,
    called twice at a time there, as MJX does, waits for itself forever; and a solver that serves
    one world stops as soon as that one is solved.
    """
    step = _control_step
    if jax.default_backend() == "cpu":
        step = jax.custom_batching.sequential_vmap(step)
    return step(body, action)


def _control_step(body: Body, action: jax.Array) -> Body:
    from mujoco import mjx

    model, data = load()
    action = jnp.clip(action, -1.0, 1.0)
    target = jnp.clip(
        body.qpos[:3] + action[:3] * STEP, jnp.array(s.WORKSPACE_LOW), jnp.array(s.WORKSPACE_HIGH)
    )
    closing = action[3] < 0
    fingers = jnp.where(closing, CLOSED, OPEN)
    data = data.replace(
        qpos=body.qpos,
        qvel=body.qvel,
        ctrl=jnp.stack([*target, fingers, fingers]),
    )
    with _as_mjx_likes():
        data, _ = jax.lax.scan(
            lambda data, _: (mjx.step(model, data), None), data, None, length=s.CONTROL_STEPS
        )
    command = jnp.where(closing, -1.0, 1.0)
    return Body(data.qpos, data.qvel, command)


@functools.cache
def load() -> tuple[Any, Any]:
    """MJX's model, and data to begin with: constants of a program.

    Raises:
        ImportError: mujoco-mjx is not installed.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it says that its other backend is absent
            from mujoco import mjx
    except ImportError as error:
        raise ImportError(
            "physics 'mjx' need mujoco-mjx: pip install 'mistjax[mjx]', or take the kinematic ones."
        ) from error
    with _as_mjx_likes(), jax.ensure_compile_time_eval():
        model = mjx.put_model(_scene().compile())
        return model, mjx.make_data(model)


@contextlib.contextmanager
def _as_mjx_likes() -> Iterator[None]:
    """With JAX's default rules of promotion, and without a warning about MJX's largest 64-bit
    number, which no 32-bit one is."""
    with (
        warnings.catch_warnings(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
        yield


def _scene() -> Any:
    """The scene of `scene.build_model` with `STONES`, and shapes that MJX can let touch."""
    import mujoco

    spec = mujoco.MjSpec.from_string(s.scene_xml(s.BoardScene(), ("black",) * STONES))
    for name, rings in (("grip", GRIP), ("foot", FOOT)):
        spec.add_mesh(name=name, uservert=stone_vertices(rings).ravel())
    # What touches what, as bits: 1 ellipsoids, 2 fingers, 4 and 8 the two meshes.
    masks = {"table": (0, 3), "board": (0, 10), "left_finger": (2, 4), "right_finger": (2, 4)}
    for i in range(STONES):
        masks[f"stone{i}"] = (1, 1)
        for name, bit in (("grip", 4), ("foot", 8)):
            geom = spec.body(f"stone{i}").add_geom(spec.geom(f"stone{i}").classname)
            geom.type, geom.meshname, geom.mass = mujoco.mjtGeom.mjGEOM_MESH, name, 0.0
            geom.contype, geom.conaffinity = bit, 0
    for name, (own, other) in masks.items():
        spec.geom(name).contype, spec.geom(name).conaffinity = own, other
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_WARMSTART
    for name, value in (("max_geom_pairs", PAIRS), ("max_contact_points", CONTACTS)):
        spec.add_numeric(name=name, data=[value])
    return spec


def stone_vertices(rings: Sequence[tuple[int, int]]) -> Float[np.ndarray, "n 3"]:
    """Vertices of a stone's mesh, in metres: rings on both sides of its middle.

    A ring reaches out so far that its polygon is as wide, in the mean over directions, as the
    ellipsoid there; the last one on each side is flat and as high as the stone.
    """
    points = []
    for latitude, count in rings:
        angle = math.radians(latitude)
        share = math.pi / count
        for side in (1.0,) if latitude == 0 else (1.0, -1.0):
            for turn in (np.arange(count) + 0.5) * 2 * share:
                out = math.cos(angle) * share / math.sin(share)
                points.append([out * math.cos(turn), out * math.sin(turn), side * math.sin(angle)])
    vertices = np.array(points)
    vertices[:, 2] /= vertices[:, 2].max()
    return vertices * np.array(s.STONE_SIZE)


def _axes(quaternion: Float[Array, "*b 4"]) -> Float[Array, "*b 3 3"]:
    w, x, y, z = jnp.moveaxis(quaternion, -1, 0) / jnp.linalg.norm(quaternion, axis=-1)[None]
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
