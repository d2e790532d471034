"""Action tokens and action units.

A normalised action in [-1, 1] falls in one of 256 bins; bin k (1..256) is the id `vocab - k`. What
a model emits need not be an action id: ids outside are clipped to the outermost bin, as in the
original, and a policy reports it (`aux["decode_ok"]`).

Source: OpenVLA, arXiv 2406.09246, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def bin_edges(n: int = 256) -> Float[np.ndarray, " edges"]:
    return np.linspace(-1.0, 1.0, n)


def bin_centers(n: int = 256) -> Float[np.ndarray, " bins"]:
    edges = bin_edges(n)
    return (edges[:-1] + edges[1:]) / 2


def encode(
    actions: Float[np.ndarray, "*b"], vocab: int = 32000, n: int = 256
) -> Int[np.ndarray, "*b"]:
    """Normalised actions, clipped to [-1, 1], to token ids; `vocab` is the unpadded vocabulary."""
    return vocab - np.digitize(np.clip(actions, -1.0, 1.0), bin_edges(n))


def decode(ids: Int[np.ndarray, "*b"], vocab: int = 32000, n: int = 256) -> Float[np.ndarray, "*b"]:
    """Token ids to the centres of their bins, in (-1, 1)."""
    return bin_centers(n)[np.clip(vocab - ids - 1, 0, n - 2)]


def statistics(norm_stats: Mapping[str, Any], key: str | None, which: str) -> Mapping[str, Any]:
    """The statistics of one data set.

    Args:
        norm_stats: data set name -> {"action": ..., "proprio": ...}.
        key: data set name; None is fine where there is only one.
        which: "action" or "proprio".

    Raises:
        ValueError: no such data set or statistics, or several data sets and none named.
    """
    if key is None and len(norm_stats) == 1:
        key = next(iter(norm_stats))
    if key is None or key not in norm_stats or which not in norm_stats[key]:
        known = {name: sorted(stats) for name, stats in norm_stats.items()}
        raise ValueError(
            f"no {which!r} statistics for unnorm_key {key!r}: the checkpoint has {known}."
        )
    return norm_stats[key][which]


def _range(stats: Mapping[str, Any], bounds: tuple[str, str]):
    low, high = (np.asarray(stats[name], np.float64) for name in bounds)
    return low, high, np.asarray(stats.get("mask", np.ones_like(low)), dtype=bool)


def unnormalise(
    actions: Float[np.ndarray, "*b a"],
    stats: Mapping[str, Any],
    bounds: tuple[str, str] = ("q01", "q99"),
) -> Float[np.ndarray, "*b a"]:
    """[-1, 1] to the data set's units; dimensions outside of the statistics' `mask` stay."""
    low, high, mask = _range(stats, bounds)
    return np.where(mask, 0.5 * (actions + 1) * (high - low) + low, actions)


def normalise(
    values: Float[np.ndarray, "*b a"],
    stats: Mapping[str, Any],
    bounds: tuple[str, str] = ("q01", "q99"),
) -> Float[np.ndarray, "*b a"]:
    """The data set's units to [-1, 1], clipped; how OpenVLA-OFT reads the robot's state."""
    low, high, mask = _range(stats, bounds)
    unit = np.clip(2 * (values - low) / (high - low + 1e-8) - 1, -1.0, 1.0)
    return np.where(mask, unit, values)


def libero_gripper(actions: Float[np.ndarray, "*b a"]) -> Float[np.ndarray, "*b a"]:
    """Last dimension from OpenVLA's 0 (closed) .. 1 (open) to LIBERO's -1 (open) or +1 (close)."""
    gripper = -np.sign(2 * actions[..., -1:] - 1)
    return np.concatenate([actions[..., :-1], gripper], axis=-1)
