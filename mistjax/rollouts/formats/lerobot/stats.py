"""Statistics as a LeRobotDataset holds them: of each episode, and of all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """Of each column of an episode."""
    x = np.asarray(values, np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    quantiles = np.quantile(x, list(QUANTILES.values()), axis=0)
    return stats | {"count": np.array([len(x)])} | dict(zip(QUANTILES, quantiles, strict=True))


def together(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Those of all episodes; quantiles are averages, as in lerobot, so they are approximate."""
    count = np.array([part["count"][0] for part in parts], np.float64)

    def average(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.average(np.stack(values), axis=0, weights=count)

    mean = average([p["mean"] for p in parts])
    square = average([p["std"] ** 2 + (p["mean"] - mean) ** 2 for p in parts])
    whole = {
        "min": np.min([p["min"] for p in parts], axis=0),
        "max": np.max([p["max"] for p in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(square),
        "count": np.array([int(count.sum())]),
        **{name: average([p[name] for p in parts]) for name in QUANTILES},
    }
    return {name: value.tolist() for name, value in whole.items()}
