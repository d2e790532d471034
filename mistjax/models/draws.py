"""Random draws whose bits do not depend on how JAX is configured.

What `jax.random` draws depends on `jax_threefry_partitionable` and, where no dtype is given, on
`jax_enable_x64`. Here number i of a draw is always the threefry2x32 block of (key, i), folded to 32
bits and read as float32: the bits of `jax.random` with its defaults. Cost: that of `jax.random`.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011); Gumbel's trick.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32


def element_keys(key: Array, batch: int) -> Key[Array, " {batch}"]:
    """One PRNG key per batch element [B], from one key or as given: no element's draws depend on
    the others.

    Raises:
        ValueError: keys for another batch size, or not of `jax.random.key` with threefry2x32.
    """
    if (
        not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        or str(jax.random.key_impl(key)) != "threefry2x32"
    ):
        raise ValueError(
            f"the key is {key.dtype}: expected one of jax.random.key(seed, impl='threefry2x32')."
        )
    if key.shape not in ((), (batch,)):
        raise ValueError(f"{key.shape} keys for a batch of {batch}: expected one key, or one each.")
    return key if key.ndim else _blocks(key, batch)


def normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Standard normal float32."""
    low = np.nextafter(np.float32(-1), np.float32(0))
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(_uniform(key, shape, low))


def categorical(key: Key[Array, ""], logits: Float[Array, " n"]) -> Int[Array, ""]:
    """An index drawn with the probabilities that float32 logits stand for."""
    tiny = np.finfo(np.float32).tiny
    gumbel = -jnp.log(-jnp.log(_uniform(key, logits.shape, tiny)))
    return jnp.argmax(gumbel + logits).astype(jnp.int32)


def _uniform(key: Key[Array, ""], shape: tuple[int, ...], low: np.float32) -> Float[Array, "..."]:
    """Float32 in [low, 1), low not below -1: a random mantissa, shifted and scaled."""
    one = np.float32(1)
    mantissa = _bits(key, math.prod(shape)) >> np.uint32(9) | one.view(np.uint32)
    unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - one
    return jnp.maximum(low, unit * (one - low) + low).reshape(shape)


def _bits(key: Key[Array, ""], count: int) -> UInt32[Array, " {count}"]:
    words = jax.random.key_data(_blocks(key, count))
    return words[:, 0] ^ words[:, 1]


def _blocks(key: Key[Array, ""], count: int) -> Key[Array, " {count}"]:
    """Blocks 0 to `count` - 1 of a key, each of which is a key."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count, dtype=jnp.uint32))
