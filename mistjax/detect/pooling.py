"""Reduce the second-to-last axis of recorded features (tokens, horizon positions, flow steps),
SAFE's commands.

Source: SAFE (arXiv 2506.09937), released feature options.
"""

from __future__ import annotations

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
        ValueError: any other command.
    """
    n = values.shape[-2]
    if command == "mean":
        return values.mean(-2)
    name, _, which = command.partition("-")
    try:
        if name != "concat":
            relative = float(command)
            if not 0 <= relative <= 1:
                raise ValueError
            return values[..., round((n - 1) * relative), :]
        if not which:
            chosen = values
        elif ":" in which:
            bounds = [int(p) if p else None for p in which.split(":")]
            chosen = values[..., slice(*bounds), :]
        else:
            if int(which) < 2:
                raise ValueError
            chosen = values[..., np.round(np.linspace(0, n - 1, int(which))).astype(int), :]
    except ValueError:
        raise ValueError(
            f"unknown pooling {command!r}; give a number in [0, 1], mean, concat, concat-k with "
            "k >= 2, or concat-a:b[:c]."
        ) from None
    return chosen.reshape(*values.shape[:-2], -1)
