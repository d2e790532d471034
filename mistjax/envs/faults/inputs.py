"""What a fault does to a picture or a state: pure functions of arrays, traceable by `jax.jit`, so
that an environment on the host and a compiled one run the same code.

`see(kind, memory, now, ...)` is one look of the policy, an inference. A kind maps a `View` (what
the sensor shows now and showed before), a strength from 0 to 1 and a key to what is delivered. What
a fault draws once per episode (a direction, a place) comes from the key as it is; what it draws at
each look, from the key folded with the number of the look. Randomness is the same whatever JAX's
defaults are.

Sizes in pixels are shares of the picture's height, so that they mean the same at every size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

MEMORY = 3
"""Looks that are remembered: the longest delay."""
PICTURE_NOISE, POSITION_NOISE, OPENING_NOISE = 4.0, 1e-3, 3e-4
"""Standard deviations of ordinary sensor noise: of 255, metres, metres."""


@flax.struct.dataclass
class Memory:
    """What a sensor showed and delivered before, of one input of one episode.

    Attributes:
        past: what it showed at the last `MEMORY` looks, newest first.
        held: what it showed at the last look before the fault began.
        last: what was delivered at the last look.
        looks: looks since the fault began.
    """

    past: Float[Array, "k *x"]
    held: Float[Array, "*x"]
    last: Float[Array, "*x"]
    looks: Int[Array, ""]


@flax.struct.dataclass
class View:
    """What a fault of an input can work with: `Memory`, and what the sensor shows now."""

    now: Float[Array, "*x"]
    past: Float[Array, "k *x"]
    held: Float[Array, "*x"]
    last: Float[Array, "*x"]
    looks: Int[Array, ""]


Strength = Float[Array, ""] | float
Shown = Num[Array | np.ndarray, "*x"]
Kind = Callable[[View, Strength, Array], Float[Array, "*x"]]


def _same_draws(function):
    """Makes the draws of a function independent of how threefry is configured."""

    @functools.wraps(function)
    def fixed(*args, **kwargs):
        with jax.threefry_partitionable(True):
            return function(*args, **kwargs)

    return fixed


def key_of(seed: int | Int[Array, ""]) -> Array:
    """The key of an episode's faults."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 0x0FA117)


def remember(first: Shown) -> Memory:
    """The memory before the first look: all looks before it showed the same."""
    first = jnp.asarray(first, jnp.float32)
    return Memory(jnp.stack([first] * MEMORY), first, first, jnp.zeros((), jnp.int32))


@_same_draws
def see(
    kind: Kind,
    memory: Memory,
    now: Shown,
    strength: Strength,
    key: Array,
    active: Bool[Array, ""] | bool,
) -> tuple[Float[Array, "*x"], Memory]:
    """One look: (what is delivered, the memory for the next look).

    Args:
        kind: what goes wrong.
        memory: of this input.
        now: what the sensor shows.
        strength: from 0 (nothing) to 1.
        key: of the episode.
        active: whether the fault has begun.
    """
    now = jnp.asarray(now, jnp.float32)
    view = View(now, memory.past, memory.held, memory.last, memory.looks)
    delivered = jnp.where(active, kind(view, strength, key), now)
    return delivered, Memory(
        past=jnp.concatenate([now[None], memory.past[:-1]]),
        held=jnp.where(active, memory.held, now),
        last=delivered,
        looks=memory.looks + jnp.asarray(active, jnp.int32),
    )


def _uniform(key: Array, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
    return jax.random.uniform(key, shape, jnp.float32)


def frozen(view: View, strength: Strength, key: Array) -> Float[Array, "*x"]:
    """What the last look before the fault showed, from then on."""
    return jnp.where(strength > 0, view.held, view.now)


def dropped(view: View, strength: Strength, key: Array) -> Float[Array, "*x"]:
    """Up to 80% of looks are lost: what was delivered last is delivered again."""
    lost = _uniform(jax.random.fold_in(key, view.looks)) < 0.8 * strength
    return jnp.where(lost, view.last, view.now)


def delayed(view: View, strength: Strength, key: Array) -> Float[Array, "*x"]:
    """Up to 3 looks late."""
    late = jnp.round(MEMORY * jnp.asarray(strength)).astype(int)
    return jnp.where(late > 0, view.past[jnp.maximum(late - 1, 0)], view.now)


def dimmed(view: View, strength: Strength, key: Array) -> Float[Array, "h w 3"]:
    """Darker, down to 15% of the light."""
    return view.now * (1 - 0.85 * strength)


def colour_cast(view: View, strength: Strength, key: Array) -> Float[Array, "h w 3"]:
    """One channel up and another down, by up to a factor of 2.2."""
    tilt = jax.random.permutation(key, jnp.array([-1.0, 0.0, 1.0]))
    return view.now * jnp.exp(0.8 * strength * tilt)[None, None]


def blurred(view: View, strength: Strength, key: Array) -> Float[Array, "h w 3"]:
    """Gaussian blur, standard deviation up to 1/16 of the height."""
    height, width = view.now.shape[:2]
    sigma = jnp.maximum(strength * height / 16, 1e-3)

    def blur(size: int) -> Float[Array, "n n"]:
        place = jnp.arange(size, dtype=jnp.float32)
        distance = place[:, None] - place[None]
        weight = jnp.exp(-0.5 * jnp.square(distance / sigma))
        return weight / weight.sum(axis=1, keepdims=True)

    return jnp.einsum("ij,jkc,lk->ilc", blur(height), view.now, blur(width))


def patch(view: View, strength: Strength, key: Array) -> Float[Array, "h w 3"]:
    """A dark square covers up to half of the height and width, somewhere."""
    top, left, side = patch_place(view.now.shape[0], view.now.shape[1], strength, key)
    rows, columns = jnp.arange(view.now.shape[0]), jnp.arange(view.now.shape[1])
    inside = ((rows >= top) & (rows < top + side))[:, None]
    inside &= ((columns >= left) & (columns < left + side))[None]
    return jnp.where(inside[..., None], 60.0, view.now)


@_same_draws
def patch_place(
    height: int, width: int, strength: Strength, key: Array
) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """(top, left, side) of the square of `patch`, in pixels."""
    side = jnp.round(0.5 * height * jnp.asarray(strength)).astype(int)
    at = _uniform(key, (2,)) * (jnp.array([height, width]) - side + 1).astype(jnp.float32)
    top, left = jnp.floor(at).astype(int)
    return top, left, side


def black(view: View, strength: Strength, key: Array) -> Float[Array, "h w 3"]:
    """No light at all."""
    return jnp.where(strength > 0, 0.0, view.now)


def shifted(view: View, strength: Strength, key: Array) -> Float[Array, "h w 3"]:
    """Moved by up to 1/8 of the height in a direction; the border repeats the edge."""
    height, width = view.now.shape[:2]
    turn = _uniform(key) * 2 * jnp.pi
    size = strength * height / 8
    down, right = jnp.round(size * jnp.sin(turn)), jnp.round(size * jnp.cos(turn))
    rows = jnp.clip(jnp.arange(height) - down.astype(int), 0, height - 1)
    columns = jnp.clip(jnp.arange(width) - right.astype(int), 0, width - 1)
    return view.now[rows][:, columns]


def salt_and_pepper(view: View, strength: Strength, key: Array) -> Float[Array, "h w 3"]:
    """Up to 60% of the pixels are black or white, different ones at every look."""
    draw = _uniform(jax.random.fold_in(key, view.looks), view.now.shape[:2])[..., None]
    share = 0.6 * strength
    return jnp.where(draw < share, jnp.where(draw < share / 2, 0.0, 255.0), view.now)


def _axis(key: Array) -> Float[Array, "3"]:
    """A unit vector along x, y or z, either way."""
    axis, sign = jax.random.split(key)
    one = jax.nn.one_hot(jax.random.randint(axis, (), 0, 3, jnp.int32), 3)
    return one * jnp.where(_uniform(sign) < 0.5, 1.0, -1.0)


def offset(view: View, strength: Strength, key: Array) -> Float[Array, " s"]:
    """One coordinate is wrong by up to 5 cm."""
    return view.now.at[:3].add(0.05 * strength * _axis(key))


def scaled(view: View, strength: Strength, key: Array) -> Float[Array, " s"]:
    """All coordinates times up to 1.5, or down to half."""
    sign = jnp.where(_uniform(key) < 0.5, 1.0, -1.0)
    return view.now.at[:3].multiply(1 + 0.5 * strength * sign)


def drifting(view: View, strength: Strength, key: Array) -> Float[Array, " s"]:
    """One coordinate moves away by up to 8 mm at every look."""
    return view.now.at[:3].add(8e-3 * strength * (view.looks + 1).astype(jnp.float32) * _axis(key))


PICTURES: dict[str, Kind] = {
    f.__name__: f
    for f in (
        dimmed,
        colour_cast,
        blurred,
        patch,
        frozen,
        black,
        shifted,
        salt_and_pepper,
        dropped,
        delayed,
    )
}
STATES: dict[str, Kind] = {f.__name__: f for f in (offset, scaled, frozen, drifting)}


@_same_draws
def picture_noise(picture: Num[Array, "h w 3"], key: Array) -> Float[Array, "h w 3"]:
    """A picture with ordinary sensor noise."""
    noise = jax.random.normal(key, picture.shape, jnp.float32)
    return picture.astype(jnp.float32) + PICTURE_NOISE * noise


@_same_draws
def state_noise(state: Float[Array, " s"], key: Array, opening: int = 3) -> Float[Array, " s"]:
    """A state with ordinary sensor noise on the position and the finger gap (entry `opening`)."""
    noise = jax.random.normal(key, (4,), jnp.float32) * jnp.array(
        [POSITION_NOISE] * 3 + [OPENING_NOISE]
    )
    return state.at[jnp.array([0, 1, 2, opening])].add(noise)


def as_pixels(picture: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """Rounded to whole numbers from 0 to 255, as a camera delivers them."""
    return jnp.clip(jnp.round(picture), 0, 255)
