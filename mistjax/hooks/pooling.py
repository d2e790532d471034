"""Reduce the second-to-last axis of recorded values (tokens, horizon positions, flow steps), with
SAFE's commands.

Source: SAFE (arXiv 2506.09937), released feature options.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def pool(
    values: Float[Array | np.ndarray, "*b n d"], command: str
) -> Float[Array | np.ndarray, "*b e"]:
    """Pool n vectors into one.

    Args:
        values: vectors along the second-to-last axis.
        command: a number r in [0, 1] takes position round((n - 1) r); "mean" averages; "concat"
            joins all, "concat-a:b" or "concat-a:b:c" that slice, "concat-k" k >= 2 evenly spaced
            ones.

    Raises:
        ValueError: any other command, or a slice that is empty.
    """
    which, n = parse_pool(command), values.shape[-2]
    if which is None:
        return _mean(values)
    if isinstance(which, float):
        return values[..., round((n - 1) * which), :]
    if isinstance(which, int):
        which = np.round(np.linspace(0, n - 1, which)).astype(int)
    chosen = values[..., which, :]
    if not chosen.shape[-2]:
        raise ValueError(f"pooling {command!r} leaves nothing of {n} positions.")
    return chosen.reshape(*values.shape[:-2], -1)


def _mean(values: Float[Array | np.ndarray, "*b n d"]) -> Float[Array | np.ndarray, "*b d"]:
    """The mean, by halves: the order of additions is part of the program, so that NumPy and every
    compiler round alike, whatever they fuse it with.
    """
    n = values.shape[-2]
    while (m := values.shape[-2]) > 1:
        half = m // 2
        total = values[..., :half, :] + values[..., half : 2 * half, :]
        if m % 2:
            rest = values[..., -1:, :]
            xp = np if isinstance(values, np.ndarray) else jnp
            total = xp.concatenate([total, rest], axis=-2)
        values = total
    return values[..., 0, :] * np.asarray(1 / n, values.dtype)


def parse_pool(command: str) -> float | slice | int | None:
    """What a command takes: a relative position, a slice, so many positions, or None for the mean.

    Raises:
        ValueError: not a command.
    """
    if command == "mean":
        return None
    name, _, which = command.partition("-")
    try:
        if name != "concat":
            relative = float(command)
            if 0 <= relative <= 1:
                return relative
        elif ":" in which or not which:
            bounds = slice(*(int(part) if part else None for part in (which or ":").split(":")))
            if bounds.step != 0:
                return bounds
        elif int(which) >= 2:
            return int(which)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"unknown pooling {command!r}; give a number in [0, 1], mean, concat, concat-k with "
        "k >= 2, or concat-a:b[:c]."
    )
