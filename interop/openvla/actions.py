"""Action tokens and action units.

A normalised action in [-1, 1] falls in one of 256 bins; bin k (1..256) is the id `vocab - k`. What
a model emits need not be an action id: ids outside are clipped to the outermost bin, as in the
original, and a policy reports it (`aux["decode_ok"]`).

Source: OpenVLA, arXiv 2406.09246, section 3.2.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def bin_edges(n: int = 256) -> Float[np.ndarray, " edges"]:
    """Equal bins of [-1, 1]: n - 1 of them."""
    return np.linspace(-1.0, 1.0, n)


def bin_centers(n: int = 256) -> Float[np.ndarray, " bins"]:
    """What the bins decode to."""
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
    if key is None and norm_stats:
        raise ValueError(
            f"the checkpoint acts in the units of one of {sorted(norm_stats)}: say which with "
            "unnorm_key, --unnorm-key on the command line."
        )
    if key is None or key not in norm_stats or which not in norm_stats[key]:
        known = {name: sorted(stats) for name, stats in norm_stats.items()}
        raise ValueError(
            f"no {which!r} statistics for unnorm_key {key!r}: the checkpoint has {known}."
        )
    return norm_stats[key][which]


def check_statistics(where: str, stats: Any, width: int, bounds: tuple[str, str]) -> None:
    """Whether statistics are of so many dimensions, and of numbers that data can have.

    Warns of a dimension that never changed in training: its action is one number whatever the
    model says, and the least change of its state is far outside.

    Args:
        where: names them in errors.
        stats: of one data set's actions or states.
        width: dimensions that the robot has.
        bounds: names of the statistics that are used.

    Raises:
        ValueError: a statistic is missing, of another length, or holds no numbers.
    """
    if not isinstance(stats, Mapping) or not set(bounds) <= set(stats):
        has = sorted(stats) if isinstance(stats, Mapping) else type(stats).__name__
        raise ValueError(f"{where}: expected {' and '.join(bounds)}, found {has}.")
    arrays = {}
    for name in (*bounds, *({"mask"} & set(stats))):
        try:
            arrays[name] = np.asarray(stats[name], bool if name == "mask" else np.float64)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{where}: {name} holds something other than numbers.") from None
        if arrays[name].shape != (width,):
            raise ValueError(
                f"{where}: {name} has the shape {arrays[name].shape}, and the robot has {width} "
                "numbers: they are of another robot, or of another unnorm_key."
            )
    low, high = (arrays[name] for name in bounds)
    used = arrays.get("mask", np.ones(width, bool))
    if wrong := np.flatnonzero(~(np.isfinite(low) & np.isfinite(high) & (low <= high))).tolist():
        raise ValueError(
            f"{where}: dimension {wrong} has {bounds[0]} {low[wrong]} and {bounds[1]} "
            f"{high[wrong]}, which no data have."
        )
    if constant := np.flatnonzero(used & (low == high)).tolist():
        warnings.warn(
            f"{where}: dimension {constant} never changed in training ({bounds[0]} = {bounds[1]} = "
            f"{low[constant]}).",
            stacklevel=3,
        )


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
    """The data set's units to [-1, 1], clipped, dimensions outside of the `mask` as well; how
    OpenVLA-OFT reads the robot's state."""
    low, high, mask = _range(stats, bounds)
    unit = np.where(mask, 2 * (values - low) / (high - low + 1e-8) - 1, values)
    return np.clip(unit, -1.0, 1.0)


def libero_gripper(actions: Float[np.ndarray, "*b a"]) -> Float[np.ndarray, "*b a"]:
    """Last dimension from OpenVLA's 0 (closed) .. 1 (open) to LIBERO's -1 (open) or +1 (close)."""
    gripper = -np.sign(2 * actions[..., -1:] - 1)
    return np.concatenate([actions[..., :-1], gripper], axis=-1)
