"""Many runs of one function: compiled once, and in a memory budget (`vmap` over a chunk, `lax.map`
over the chunks).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`jax.jit` for any arguments: arrays are traced, all else is static and must be hashable.

    So a policy that is a pytree passes its weights as arguments, and one that is not is a constant.
    Inside another jitted function it does nothing.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(structure, constants, arrays):
        leaves = [c if a is None else a for a, c in zip(arrays, constants, strict=True)]
        args, kwargs = jax.tree.unflatten(structure, leaves)
        return function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        constants = tuple(None if t else leaf for t, leaf in zip(traced, leaves, strict=True))
        arrays = [leaf if t else None for t, leaf in zip(traced, leaves, strict=True)]
        return run(structure, constants, arrays)

    return call  # type: ignore[return-value]


def check_shares(name: str, tree: Any) -> None:
    """ValueError where an array holds NaN or something outside of [0, 1]; arrays of a program that
    is being traced pass.
    """
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, Tracer) and not bool(jnp.all((leaf >= 0) & (leaf <= 1))):
            raise ValueError(f"{name} are shares: expected numbers from 0 to 1, and none is NaN.")


def blocks(xs: Any, chunk: int) -> Any:
    """Leading axis n -> (chunks, chunk), filled up by repeating the last entry.

    Raises:
        ValueError: chunk is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}: expected at least 1 run at a time.")

    def split(x):
        size = min(chunk, len(x))
        padding = jnp.repeat(x[-1:], -len(x) % size, axis=0)
        return jnp.concatenate([x, padding]).reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, xs)


def in_chunks(function: Callable[[Any], Any], xs: Any, chunk: int) -> Any:
    """`vmap(function)(xs)`, at most `chunk` entries at a time; one trace for any length."""
    count = len(jax.tree.leaves(xs)[0])
    out = jax.lax.map(jax.vmap(function), blocks(xs, chunk))
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:count], out)


def largest_chunk(function: Callable[..., Any], budget: int, *args: Any, most: int = 256) -> int:
    """The largest chunk whose program needs at most `budget` bytes of temporary memory.

    Args:
        function: `function(*args, chunk=n)`, jittable.
        budget: bytes.
        *args: arguments of the function.
        most: never more than this.

    Cost: compiles the function twice, for chunks of 1 and 2, and runs nothing.

    Raises:
        ValueError: not even one entry fits, or the device does not report its memory.
    """

    def temporary(chunk: int) -> int:
        program = jax.jit(lambda *a: function(*a, chunk=chunk)).lower(*args).compile()
        memory = program.memory_analysis()
        if memory is None:
            raise ValueError(f"{jax.default_backend()} does not report memory: choose a chunk.")
        return memory.temp_size_in_bytes

    one, two = temporary(1), temporary(2)
    if one > budget:
        raise ValueError(
            f"one run needs {one / 2**20:.0f} MiB, the budget is {budget / 2**20:.0f} MiB: raise "
            "the budget, or use a smaller batch."
        )
    return int(min(most, 1 + (budget - one) // max(two - one, 1)))
