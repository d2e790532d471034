"""A ray-caster in JAX that draws the board scene without OpenGL.

A picture is a pure function of `Poses` (what moves) and `Look` (what does not), so it can be
jitted, batched with `jax.vmap` and run on any device. Planes, boxes, ellipsoids, cylinders and
capsules are drawn at any rotation.

Cost: about 0.4 ms per 64x64 picture on one CPU core. Two choices make that so: x, y and z stay
separate arrays, and solids are scanned for distance alone before the nearest one is shaded once.
Unrolling the scan lets XLA recompute it for every use of its result, which is six times slower on
CPU.
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

    Rotations hold the local axes as columns. A camera's columns are right, up and backward.
    """

    position: Float[Numbers, "*n solids 3"]
    rotation: Float[Numbers, "*n solids 3 3"]
    camera_position: Float[Numbers, "*n cameras 3"]
    camera_rotation: Float[Numbers, "*n cameras 3 3"]


class Look(NamedTuple):
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
    """Ray origin, rotation into the camera, light direction and viewing axis, each seen from every
    solid's own frame.

    Row 0 is the table, whose frame is the world's.
    """

    origin: Float[jax.Array, "solids 3"]
    rays: Float[jax.Array, "solids 3 3"]
    light: Float[jax.Array, "solids 3"]


def _kinds(look: Look) -> list[tuple[Numbers, Callable[..., jax.Array], Callable[..., Triple]]]:
    return [
        (look.box_size, hit_box, normal_box),
        (look.ellipsoid_size, hit_ellipsoid, normal_ellipsoid),
        (look.cylinder_size, hit_cylinder, normal_cylinder),
        (look.capsule_size, hit_capsule, normal_capsule),
    ]


def _nearest(look: Look, frame: _Frame, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ray parameter and id of the first thing each pixel sees; rays are (x, y, -1) in the camera's
    frame."""

    def ray(a: jax.Array) -> Triple:
        return tuple(a[k, 0] * x + a[k, 1] * y - a[k, 2] for k in range(3))  # type: ignore[return-value]

    down, above = ray(frame.rays[0])[2], frame.origin[0, 2]
    best = jnp.where((down < 0) & (above > 0), -above * inverse(down), FAR)
    ids = jnp.where(best < FAR / 2, TABLE_ID, SKY_ID)
    start = 1
    for sizes, hit, _ in _kinds(look):

        def closer(carry, solid, hit=hit):
            best, ids = carry
            i, size, origin, rays = solid
            t = hit(tuple(origin), ray(rays), size)
            return (jnp.minimum(t, best), jnp.where(t < best, i, ids)), None

        end = start + sizes.shape[0]
        solids = (jnp.arange(start, end), sizes, frame.origin[start:end], frame.rays[start:end])
        (best, ids), _ = jax.lax.scan(closer, (best, ids), solids)
        start = end
    return best, ids


def _normal(look: Look, ids: jax.Array, p: Triple, size: Triple) -> Triple:
    """Unit normal at local point `p` of the solid each pixel sees."""
    zero = jnp.zeros_like(p[0])
    normal, start = (zero, zero, zero + 1), 1
    for sizes, _, of_kind in _kinds(look):
        if sizes.shape[0]:
            n = of_kind(p, size)
            normal = tuple(jnp.where(ids >= start, n[k], normal[k]) for k in range(3))
        start += sizes.shape[0]
    return unit(normal)


def _grid_cover(look: Look, p: Triple, pixel: jax.Array) -> jax.Array:
    """Share of a pixel (`pixel` metres wide) that a grid line covers; thin lines fade instead of
    flickering."""
    spacing, half, reach = look.line[0], look.line[1], look.line[2]
    gap = [jnp.abs(p[i] - jnp.round(p[i] / spacing) * spacing) for i in (0, 1)]
    cover = jnp.clip((half + pixel / 2 - jnp.minimum(gap[0], gap[1])) / pixel, 0.0, 1.0)
    cover = cover * jnp.minimum(1.0, 2 * half / pixel + 0.25)
    return jnp.where((jnp.abs(p[0]) < reach) & (jnp.abs(p[1]) < reach), cover, 0.0)


def _mix(share: jax.Array, a, b) -> Triple:
    return tuple(share * a[i] + (1 - share) * b[i] for i in range(3))  # type: ignore[return-value]


def _lit(poses: Poses, look: Look, point: Triple, light: jax.Array) -> jax.Array:
    """1 where nothing stands between the world `point` and the light."""
    blocked, start = jnp.zeros(point[0].shape, bool), 0
    for sizes, hit, _ in _kinds(look):

        def block(blocked, solid, hit=hit):
            size, position, rotation = solid
            o = into(rotation, [point[k] - position[k] for k in range(3)])
            return blocked | (hit(o, into(rotation, light), size) < FAR / 2), None

        end = start + sizes.shape[0]
        solids = (sizes, poses.position[start:end], poses.rotation[start:end])
        blocked, _ = jax.lax.scan(block, blocked, solids)
        start = end
    return jnp.where(blocked, 0.0, 1.0)


def render(
    poses: Poses, look: Look, camera: int | jax.Array, size: int, shadow: bool
) -> tuple[Float[jax.Array, "size size 3"], Int[jax.Array, "size size"]]:
    """One camera's picture in [0, 1] and the id each pixel shows: solid index + 1, 0 table, -1 sky.

    First every solid is asked only for its distance; shading then runs once, for the solid that
    each pixel sees.
    """
    eye, view = poses.camera_position[camera], poses.camera_rotation[camera]
    half = jnp.tan(jnp.deg2rad(look.fovy[camera]) / 2)
    steps = ((jnp.arange(size) + 0.5) / size * 2 - 1) * half
    x, y = jnp.meshgrid(steps, -steps)
    light = look.light / jnp.linalg.norm(look.light)

    position = jnp.concatenate([jnp.zeros((1, 3)), poses.position])
    rotation = jnp.concatenate([jnp.eye(3)[None], poses.rotation])
    frame = _Frame(
        jnp.einsum("ski,sk->si", rotation, eye - position, precision="highest"),
        jnp.einsum("ski,kj->sij", rotation, view, precision="highest"),
        jnp.einsum("ski,k->si", rotation, light, precision="highest"),
    )
    t, ids = _nearest(look, frame, x, y)

    long = [
        jnp.pad(s, ((0, 0), (0, 3 - s.shape[1])), constant_values=1.0) for s, *_ in _kinds(look)
    ]
    table = [jnp.ones((1, 3)), jnp.zeros((1, 4))]
    paint = jnp.concatenate([look.rgb, look.specular[:, None]], 1)
    rows = [*frame, jnp.concatenate([table[0], *long]), jnp.concatenate([table[1], paint])]
    rows = jnp.concatenate([r.reshape(r.shape[0], -1) for r in rows], 1)
    chosen = jax.nn.one_hot(ids.reshape(-1), rows.shape[0], dtype=rows.dtype)
    seen = jnp.dot(chosen, rows, precision="highest").T.reshape(-1, size, size)
    o, a, toward, long, rgb, specular = (
        seen[:3],
        seen[3:12],
        seen[12:15],
        seen[15:18],
        seen[18:21],
        seen[21],
    )

    d = tuple(a[3 * k] * x + a[3 * k + 1] * y - a[3 * k + 2] for k in range(3))
    depth = jnp.where(ids == SKY_ID, 0.0, t)
    p = tuple(o[k] + depth * d[k] for k in range(3))
    n = _normal(look, ids, p, tuple(long))  # type: ignore[arg-type]
    odd = jnp.mod(jnp.floor(p[0] / look.table_tile) + jnp.floor(p[1] / look.table_tile), 2.0)
    rgb = [
        jnp.where(ids == TABLE_ID, tile, c)
        for tile, c in zip(_mix(odd, look.table_rgb[1], look.table_rgb[0]), rgb, strict=True)
    ]
    cover = _grid_cover(look, p, depth * 2 * half / size + 1e-9)  # type: ignore[arg-type]
    rgb = _mix(jnp.where((ids == 1) & (n[2] > 0.5), cover, 0.0), look.line_rgb, rgb)

    facing = jnp.maximum(dot(n, toward), 0.0)
    if shadow:
        world = into(view.T, (x, y, -jnp.ones_like(x)))
        up = [eye[k] + depth * world[k] + 1e-3 * light[k] for k in range(3)]
        facing = facing * _lit(poses, look, tuple(up), light)  # type: ignore[arg-type]
    back = unit(d)
    halfway = unit([toward[k] - back[k] for k in range(3)])
    shine = specular * jnp.maximum(dot(n, halfway), 0.0) ** SHININESS * (facing > 0)
    head = jnp.maximum(dot(n, (a[2], a[5], a[8])), 0.0)
    energy = look.ambient + look.diffuse * facing + look.headlight * head
    rgb = [
        jnp.where(ids == SKY_ID, 0.0, (rgb[k] * energy + shine) * look.gain[k]) for k in range(3)
    ]
    return jnp.clip(jnp.stack(rgb, -1), 0.0, 1.0), ids


@functools.partial(jax.jit, static_argnames=("size", "shadow"))
def pictures(
    poses: Poses, look: Look, *, size: int, shadow: bool
) -> UInt8[jax.Array, "cameras size size 3"]:
    """Every camera's picture as 8-bit RGB, in one program."""
    draw = jax.vmap(lambda camera: render(poses, look, camera, size, shadow)[0])
    return jnp.round(draw(jnp.arange(look.fovy.shape[0])) * 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("size", "shadow"))
def picture_batch(
    poses: Poses, look: Look, *, size: int, shadow: bool
) -> UInt8[jax.Array, "batch cameras size size 3"]:
    """`pictures` for a batch of poses, with one look for all or one for each."""
    each = None if look.fovy.ndim == 1 else 0
    draw = functools.partial(pictures, size=size, shadow=shadow)
    return jax.vmap(draw, in_axes=(0, each))(poses, look)


@functools.partial(jax.jit, static_argnames="size")
def segmentation(poses: Poses, look: Look, *, size: int) -> Int[jax.Array, "cameras size size"]:
    """The solid each pixel shows, per camera: index in `Poses` + 1, 0 for the table, -1 for the
    sky."""
    draw = jax.vmap(lambda camera: render(poses, look, camera, size, False)[1])
    return draw(jnp.arange(look.fovy.shape[0]))
