"""Where a ray meets a solid, and which way the surface faces there.

Rays and points are in the solid's own frame, as triples of equally shaped arrays (x, y, z). A hit
is the ray parameter of the first surface point in front of the origin, or `FAR`. Sizes are
MuJoCo's: half lengths, or radius and half length along z. A solid seen from inside is not hit.
"""

import jax
import jax.numpy as jnp

Triple = tuple[jax.Array, jax.Array, jax.Array]
FAR = 1e6


def dot(a, b) -> jax.Array:
    """Inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def into(rotation: jax.Array, v) -> Triple:
    """World vector `v` in the frame whose axes are the columns of `rotation`."""
    return tuple(dot(rotation[:, i], v) for i in range(3))  # type: ignore[return-value]


def unit(v) -> Triple:
    """The vector at length 1."""
    k = jax.lax.rsqrt(dot(v, v) + 1e-20)
    return (v[0] * k, v[1] * k, v[2] * k)


def inverse(x: jax.Array) -> jax.Array:
    """1 / x, finite at 0."""
    return 1 / jnp.where(jnp.abs(x) < 1e-9, 1e-9, x)


def _first_root(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """Smaller root of a t^2 + 2 b t + c, or FAR where there is none in front of the ray."""
    disc = b * b - a * c
    t = (-b - jnp.sqrt(jnp.maximum(disc, 0.0))) / a
    return jnp.where((disc > 0) & (t > 1e-5), t, FAR)


def hit_box(o, d, size) -> jax.Array:
    """Where a ray from `o` along `d` meets a box; see the module."""
    near, far = jnp.float32(-FAR), jnp.float32(FAR)
    for i in range(3):
        inv = inverse(d[i])
        a, b = (-size[i] - o[i]) * inv, (size[i] - o[i]) * inv
        near, far = jnp.maximum(near, jnp.minimum(a, b)), jnp.minimum(far, jnp.maximum(a, b))
    return jnp.where((far > near) & (near > 1e-5), near, FAR)


def hit_ellipsoid(o, d, size) -> jax.Array:
    """Where a ray from `o` along `d` meets an ellipsoid; see the module."""
    o = tuple(o[i] / size[i] for i in range(3))
    d = tuple(d[i] / size[i] for i in range(3))
    return _first_root(dot(d, d), dot(o, d), dot(o, o) - 1)


def _hit_side(o, d, size) -> jax.Array:
    a = d[0] * d[0] + d[1] * d[1] + 1e-12
    t = _first_root(a, o[0] * d[0] + o[1] * d[1], o[0] * o[0] + o[1] * o[1] - size[0] ** 2)
    return jnp.where(jnp.abs(o[2] + t * d[2]) < size[1], t, FAR)


def hit_cylinder(o, d, size) -> jax.Array:
    """Where a ray from `o` along `d` meets a cylinder; see the module."""
    t = (-jnp.sign(d[2]) * size[1] - o[2]) * inverse(d[2])
    x, y = o[0] + t * d[0], o[1] + t * d[1]
    cap = jnp.where((x * x + y * y < size[0] ** 2) & (t > 1e-5), t, FAR)
    return jnp.minimum(_hit_side(o, d, size), cap)


def hit_capsule(o, d, size) -> jax.Array:
    """Where a ray from `o` along `d` meets a capsule; see the module."""
    t, dd = _hit_side(o, d, size), dot(d, d)
    for end in (-size[1], size[1]):
        e = (o[0], o[1], o[2] - end)
        t = jnp.minimum(t, _first_root(dd, dot(e, d), dot(e, e) - size[0] ** 2))
    return t


def normal_box(p, size) -> Triple:
    """The outward normal at a point of the surface, of length 1."""
    r = [jnp.abs(p[i]) / size[i] for i in range(3)]
    top = jnp.maximum(jnp.maximum(r[0], r[1]), r[2]) - 1e-5
    return tuple(jnp.where(r[i] >= top, jnp.sign(p[i]), 0.0) for i in range(3))  # type: ignore[return-value]


def normal_ellipsoid(p, size) -> Triple:
    """The outward normal at a point of the surface, of any length."""
    return tuple(p[i] / (size[i] * size[i]) for i in range(3))  # type: ignore[return-value]


def normal_cylinder(p, size) -> Triple:
    """The outward normal at a point of the surface, of any length."""
    cap = jnp.abs(p[2]) > size[1] * (1 - 1e-4)
    return (
        jnp.where(cap, 0.0, p[0]),
        jnp.where(cap, 0.0, p[1]),
        jnp.where(cap, jnp.sign(p[2]), 0.0),
    )


def normal_capsule(p, size) -> Triple:
    """The outward normal at a point of the surface, of any length."""
    return (p[0], p[1], p[2] - jnp.clip(p[2], -size[1], size[1]))
