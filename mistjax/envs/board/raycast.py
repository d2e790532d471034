"""A ray-caster in JAX that draws the board scene without OpenGL.

A picture is a pure function of `Poses` (what moves) and `Appearance` (what does not), so it can be
jitted, batched with `jax.vmap` and run on any device. Planes, boxes, ellipsoids, cylinders and
capsules are drawn at any rotation.

Cost: about 0.4 ms per 64x64 picture on one CPU core. Three choices make that so: x, y and z stay
separate arrays; solids are scanned for distance alone, with one integer as the scan's result,
before the nearest one is shaded once; and a batch is one array per step, never a loop over
pictures, whose body XLA runs several times slower on CPU. Unrolling the scan lets XLA recompute it
for every use of its result, which is far slower on CPU.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from mistjax.envs.board.scene import SHININESS
from mistjax.envs.board.solids import (
    FAR,
    Triple,
    dot,
    hit_box,
    hit_capsule,
    hit_cylinder,
    hit_ellipsoid,
    into,
    inverse,
    normal_box,
    normal_capsule,
    normal_cylinder,
    normal_ellipsoid,
    unit,
)

Numbers = jax.Array | np.ndarray
SKY_ID, TABLE_ID = -1, 0


class Poses(NamedTuple):
    """What moves: solids in the order boxes, ellipsoids, cylinders, capsules; then the cameras.

    Rotations hold the local axes as columns; None says that every solid is upright, which is drawn
    faster. A camera's columns are right, up and backward.
    """

    position: Float[Numbers, "*n solids 3"]
    rotation: Float[Numbers, "*n solids 3 3"] | None
    camera_position: Float[Numbers, "*n cameras 3"]
    camera_rotation: Float[Numbers, "*n cameras 3 3"]


class Appearance(NamedTuple):
    """What does not move: sizes in metres (half lengths; radius and half length), colours in [0,
    1], light, cameras.

    Box 0 carries the grid lines on its top face, symmetric about its centre: `line` is spacing,
    half width and reach in metres. The table is the plane z = 0 in tiles of the two `table_rgb`.
    """

    box_size: Float[Numbers, "boxes 3"]
    ellipsoid_size: Float[Numbers, "ellipsoids 3"]
    cylinder_size: Float[Numbers, "cylinders 2"]
    capsule_size: Float[Numbers, "capsules 2"]
    rgb: Float[Numbers, "solids 3"]
    specular: Float[Numbers, "solids"]
    table_rgb: Float[Numbers, "2 3"]
    table_tile: Float[Numbers, ""]
    line: Float[Numbers, "3"]
    line_rgb: Float[Numbers, "3"]
    light: Float[Numbers, "3"]
    ambient: Float[Numbers, ""]
    diffuse: Float[Numbers, ""]
    headlight: Float[Numbers, ""]
    gain: Float[Numbers, "3"]
    fovy: Float[Numbers, "cameras"]


class _Frame(NamedTuple):
    """Ray origin, rotation into the camera and light direction, seen from each solid's own frame.
    Where all solids are upright, `rays` and `light` are the same for all and lack the axis."""

    origin: Float[jax.Array, "solids 3"]
    rays: Float[jax.Array, "*solids 3 3"]
    light: Float[jax.Array, "*solids 3"]

    @property
    def upright(self) -> bool:
        return self.rays.ndim == 2


def _kinds(
    appearance: Appearance,
) -> list[tuple[Numbers, Callable[..., jax.Array], Callable[..., Triple]]]:
    return [
        (appearance.box_size, hit_box, normal_box),
        (appearance.ellipsoid_size, hit_ellipsoid, normal_ellipsoid),
        (appearance.cylinder_size, hit_cylinder, normal_cylinder),
        (appearance.capsule_size, hit_capsule, normal_capsule),
    ]


def _shown_kinds(
    appearance: Appearance, ids: jax.Array
) -> list[tuple[jax.Array, Callable[..., jax.Array], Callable[..., Triple]]]:
    """(pixels that show it, hit, normal) of every kind of solid that there is."""
    found, start = [], 1
    for sizes, hit, normal in _kinds(appearance):
        if len(sizes):
            found.append(((ids >= start) & (ids < start + len(sizes)), hit, normal))
        start += len(sizes)
    return found


def _ray(rays, x: jax.Array, y: jax.Array) -> Triple:
    """The pixels' rays (x, y, -1) of the camera in another frame."""
    return tuple(rays[k][0] * x + rays[k][1] * y - rays[k][2] for k in range(3))  # type: ignore[return-value]


def _nearest(
    appearance: Appearance, table: jax.Array, frame: _Frame, x: jax.Array, y: jax.Array
) -> jax.Array:
    """What each pixel sees first: 0 the table, 1 + index of a solid, and after the last the sky.

    Distance and id are one integer, its id in the last bits of the distance, so that the scan has
    one result: floats above 0 are ordered as their bits. Two surfaces nearer than 4e-6 of their
    distance can so be taken for each other.
    """
    sky = 1 + sum(len(sizes) for sizes, *_ in _kinds(appearance))
    low = (1 << sky.bit_length()) - 1

    def pack(t, i):
        return (jax.lax.bitcast_convert_type(t, jnp.int32) & ~low) | i

    best, start = pack(table, jnp.where(table < FAR / 2, TABLE_ID, sky)), 1
    for sizes, hit, _ in _kinds(appearance):

        def closer(best, i, sizes=jnp.asarray(sizes), hit=hit, start=start):
            rays = frame.rays if frame.upright else frame.rays[i - 1]
            t = hit(tuple(frame.origin[i - 1]), _ray(rays, x, y), sizes[i - start])
            return jnp.minimum(best, pack(t, i)), None

        if len(sizes):
            best, _ = jax.lax.scan(closer, best, jnp.arange(start, start + len(sizes)))
        start += len(sizes)
    return best & low


def _seen(ids: jax.Array, table, solids) -> jax.Array:
    """The value of what each pixel sees; a chain of selections, since it fuses where a gather does
    not."""
    value = jnp.broadcast_to(jnp.asarray(table, jnp.float32), ids.shape)
    for i in range(len(solids)):
        value = jnp.where(ids == i + 1, solids[i], value)
    return value


def _grid_cover(appearance: Appearance, p: Triple, pixel: jax.Array) -> jax.Array:
    """Share of a pixel (`pixel` metres wide) that a grid line covers; thin lines fade instead of
    flickering."""
    spacing, half, reach = appearance.line[0], appearance.line[1], appearance.line[2]
    gap = [jnp.abs(p[i] - jnp.round(p[i] / spacing) * spacing) for i in (0, 1)]
    cover = jnp.clip((half + pixel / 2 - jnp.minimum(gap[0], gap[1])) / pixel, 0.0, 1.0)
    cover = cover * jnp.minimum(1.0, 2 * half / pixel + 0.25)
    return jnp.where((jnp.abs(p[0]) < reach) & (jnp.abs(p[1]) < reach), cover, 0.0)


def _lit(poses: Poses, appearance: Appearance, point: Triple, light: jax.Array) -> jax.Array:
    """1 where nothing stands between the world `point` and the light."""
    blocked, start = jnp.zeros(point[0].shape, bool), 0
    for sizes, hit, _ in _kinds(appearance):

        def block(blocked, i, sizes=jnp.asarray(sizes), hit=hit, start=start):
            o, toward = [point[k] - poses.position[i, k] for k in range(3)], tuple(light)
            if poses.rotation is not None:
                turned = jnp.asarray(poses.rotation)[i]
                o, toward = into(turned, o), into(turned, light)
            return blocked | (hit(o, toward, sizes[i - start]) < FAR / 2), None

        if len(sizes):
            blocked, _ = jax.lax.scan(block, blocked, jnp.arange(start, start + len(sizes)))
        start += len(sizes)
    return jnp.where(blocked, 0.0, 1.0)


def render(
    poses: Poses, appearance: Appearance, camera: int | jax.Array, size: int, shadow: bool
) -> tuple[Float[jax.Array, "size size 3"], Int[jax.Array, "size size"]]:
    """One camera's picture in [0, 1] and the id each pixel shows: solid index + 1, 0 table, -1 sky.

    First every solid is asked only for its distance; shading then runs once, for the solid that
    each pixel sees, which is asked again for its exact distance.
    """
    eye, view = poses.camera_position[camera], poses.camera_rotation[camera]
    half = jnp.tan(jnp.deg2rad(appearance.fovy[camera]) / 2)
    steps = ((jnp.arange(size, dtype=jnp.float32) + 0.5) / size * 2 - 1) * half
    x, y = jnp.meshgrid(steps, -steps)
    light = appearance.light / jnp.linalg.norm(appearance.light)
    frame, world = _frame(poses, eye, view, light), _ray(view, x, y)
    table = jnp.where((world[2] < 0) & (eye[2] > 0), -eye[2] * inverse(world[2]), FAR)
    ids = _nearest(appearance, table, frame, x, y)
    is_table, sky = ids == TABLE_ID, 1 + len(poses.position)

    def vector(of_solids, of_table) -> Triple:
        return tuple(_seen(ids, of_table[k], of_solids[:, k]) for k in range(3))  # type: ignore[return-value]

    if frame.upright:
        d, toward, up = world, light, view[:, 2]
    else:
        d = _ray([vector(frame.rays[:, k], view[k]) for k in range(3)], x, y)
        toward, up = vector(frame.light, light), vector(frame.rays[..., 2], view[:, 2])
    o = vector(frame.origin, eye)
    long = [
        jnp.pad(s, ((0, 0), (0, 3 - s.shape[1])), constant_values=1) for s, *_ in _kinds(appearance)
    ]
    lengths = vector(jnp.concatenate(long), (1.0, 1.0, 1.0))

    depth, n = jnp.where(is_table, table, 0.0), (jnp.zeros_like(x),) * 2 + (jnp.ones_like(x),)
    kinds = _shown_kinds(appearance, ids)
    for mine, hit, _ in kinds:
        depth = jnp.where(mine, hit(o, d, lengths), depth)
    p = tuple(o[k] + depth * d[k] for k in range(3))
    for mine, _, normal in kinds:
        facing = normal(p, lengths)
        n = tuple(jnp.where(mine, facing[k], n[k]) for k in range(3))
    n = unit(n)

    facing = jnp.maximum(dot(n, toward), 0.0)
    if shadow:
        above = [eye[k] + depth * world[k] + 1e-3 * light[k] for k in range(3)]
        facing = facing * _lit(poses, appearance, tuple(above), light)  # type: ignore[arg-type]
    back = unit(d)
    halfway = unit([toward[k] - back[k] for k in range(3)])
    shine = jnp.maximum(dot(n, halfway), 0.0) ** SHININESS * (facing > 0).astype(jnp.float32)
    shine = _seen(ids, 0.0, appearance.specular) * shine
    head = jnp.maximum(dot(n, up), 0.0)
    energy = appearance.ambient + appearance.diffuse * facing + appearance.headlight * head

    odd = jnp.mod(
        jnp.floor(p[0] / appearance.table_tile) + jnp.floor(p[1] / appearance.table_tile), 2.0
    )
    cover = _grid_cover(appearance, p, depth * 2 * half / size + 1e-9)  # type: ignore[arg-type]
    paint = jnp.where(is_table, odd, jnp.where((ids == 1) & (n[2] > 0.5), cover, 0.0))
    channels = []
    for k in range(3):
        plain = _seen(ids, appearance.table_rgb[0, k], appearance.rgb[:, k])
        painted = jnp.where(is_table, appearance.table_rgb[1, k], appearance.line_rgb[k])
        lit = (paint * painted + (1 - paint) * plain) * energy + shine
        channels.append(jnp.where(ids == sky, 0.0, lit * appearance.gain[k]))
    return jnp.clip(jnp.stack(channels, -1), 0.0, 1.0), jnp.where(ids == sky, SKY_ID, ids)


def _frame(poses: Poses, eye: jax.Array, view: jax.Array, light: jax.Array) -> _Frame:
    away = eye[None] - poses.position
    if poses.rotation is None:
        return _Frame(away, view, light)
    precise = functools.partial(jnp.einsum, precision="highest")
    return _Frame(
        precise("ski,sk->si", poses.rotation, away),
        precise("ski,kj->sij", poses.rotation, view),
        precise("ski,k->si", poses.rotation, light),
    )


@functools.partial(jax.jit, static_argnames=("size", "shadow"))
def pictures(
    poses: Poses, appearance: Appearance, *, size: int, shadow: bool
) -> UInt8[jax.Array, "cameras size size 3"]:
    """Every camera's picture as 8-bit RGB, in one program."""
    draw = jax.vmap(lambda camera: render(poses, appearance, camera, size, shadow)[0])
    return jnp.round(draw(jnp.arange(appearance.fovy.shape[0])) * 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("size", "shadow"))
def picture_batch(
    poses: Poses, appearance: Appearance, *, size: int, shadow: bool
) -> UInt8[jax.Array, "batch cameras size size 3"]:
    """`pictures` for a batch of poses, with one appearance for all or one for each."""
    each = None if appearance.fovy.ndim == 1 else 0
    draw = functools.partial(pictures, size=size, shadow=shadow)
    return jax.vmap(draw, in_axes=(0, each))(poses, appearance)


@functools.partial(jax.jit, static_argnames="size")
def segmentation(
    poses: Poses, appearance: Appearance, *, size: int
) -> Int[jax.Array, "cameras size size"]:
    """The solid each pixel shows, per camera: index in `Poses` + 1, 0 for the table, -1 for the
    sky."""
    draw = jax.vmap(lambda camera: render(poses, appearance, camera, size, False)[1])
    return draw(jnp.arange(appearance.fovy.shape[0]))
