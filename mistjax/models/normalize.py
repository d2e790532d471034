"""Robot units to model units and back: z-score (pi0) and quantile (pi0.5, pi0-FAST) normalisation.

Statistics and normalisers are pytrees and their methods work on NumPy and JAX arrays alike, inside
jit too. The file is openpi's `norm_stats.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.files import atomic, read_json

EPSILON = 1e-6
FIELDS = ("mean", "std", "q01", "q99")

AnyArray = Array | np.ndarray


@flax.struct.dataclass
class NormStats:
    """Statistics of states or actions per dimension, in the robot's units.

    Attributes:
        mean, std: of the training data.
        q01, q99: its 1% and 99% quantiles; None where a file does not hold them.
    """

    mean: Float[AnyArray, " d"]
    std: Float[AnyArray, " d"]
    q01: Float[AnyArray, " d"] | None = None
    q99: Float[AnyArray, " d"] | None = None

    @classmethod
    def of(cls, values: Float[np.ndarray, "*n d"]) -> NormStats:
        """Statistics over all axes but the last.

        Raises:
            ValueError: no values, or some that are not finite.
        """
        flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        if not flat.size or (wrong := np.flatnonzero(~np.isfinite(flat).all(axis=0))).size:
            bad = f"NaN or Inf in dimension {wrong.tolist()}" if flat.size else "no values"
            raise ValueError(f"data of shape {values.shape} hold {bad}: they have no statistics.")
        q01, q99 = np.quantile(flat, (0.01, 0.99), axis=0)
        stats = (flat.mean(0), flat.std(0), q01, q99)
        return cls(*(array.astype(np.float32) for array in stats))

    @property
    def width(self) -> int:
        return self.mean.shape[-1]


@runtime_checkable
class Normalizer(Protocol):
    """Robot units <-> model units, for arrays [..., d] with d at most the statistics' width."""

    stats: NormStats

    def normalize(self, x: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]: ...

    def unnormalize(self, x: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]: ...


@flax.struct.dataclass
class ZScore:
    """(x - mean) / (std + 1e-6)."""

    stats: NormStats

    def normalize(self, x: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
        s = _cut(self.stats, x)
        return (x - s.mean) / (s.std + EPSILON)

    def unnormalize(self, x: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
        s = _cut(self.stats, x)
        return x * (s.std + EPSILON) + s.mean


@flax.struct.dataclass
class Quantile:
    """(x - q01) / (q99 - q01 + 1e-6) * 2 - 1: the central 98% fall into [-1, 1]."""

    stats: NormStats

    def normalize(self, x: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
        low, high = _quantiles(self.stats, x)
        return (x - low) / (high - low + EPSILON) * 2 - 1

    def unnormalize(self, x: Float[AnyArray, "*n d"]) -> Float[AnyArray, "*n d"]:
        low, high = _quantiles(self.stats, x)
        return (x + 1) / 2 * (high - low + EPSILON) + low


def _cut(stats: NormStats, x: AnyArray) -> NormStats:
    """Statistics may be wider than the robot (openpi stores some padded), never narrower."""
    width = x.shape[-1]
    if width > stats.width:
        raise ValueError(
            f"array of shape {tuple(x.shape)}: the statistics cover {stats.width} dimensions; cut "
            "padded states and actions to the robot's width first (pad_to)."
        )
    return jax.tree.map(lambda leaf: leaf[(None,) * (x.ndim - leaf.ndim)][..., :width], stats)


def _quantiles(stats: NormStats, x: AnyArray) -> tuple[AnyArray, AnyArray]:
    if stats.q01 is None or stats.q99 is None:
        raise ValueError(
            "the statistics hold no quantiles (q01, q99), which pi0.5 and pi0-FAST normalise by: "
            "compute them with NormStats.of(training data)."
        )
    stats = _cut(stats, x)
    return stats.q01, stats.q99  # type: ignore[return-value]


def pad_to(x: Float[AnyArray, "*n d"], width: int) -> Float[AnyArray, "*n w"]:
    """Zeros appended to, or dimensions cut from, the last axis until it has `width`."""
    missing = width - x.shape[-1]
    if missing <= 0:
        return x[..., :width]
    xp = jnp if isinstance(x, jax.Array) else np
    return xp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def save_norm_stats(path: str | Path, stats: Mapping[str, NormStats]) -> None:
    """Writes openpi's `norm_stats.json`; the keys are usually "state" and "actions".

    Raises:
        ValueError: numbers that describe no data.
    """
    for name, each in stats.items():
        _check_numbers(f"{path}: {name}", each)
    content = {
        name: {f: None if (v := getattr(s, f)) is None else np.asarray(v).tolist() for f in FIELDS}
        for name, s in stats.items()
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic(Path(path)) as temporary:
        temporary.write_text(json.dumps({"norm_stats": content}, indent=2) + "\n")


def load_norm_stats(path: str | Path) -> dict[str, NormStats]:
    """Reads openpi's `norm_stats.json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the content is not such a file, its arrays disagree in length, or its numbers
            describe no data.
    """
    content = read_json(Path(path))
    if not isinstance(content.get("norm_stats"), dict):
        raise ValueError(f'{path}: expected {{"norm_stats": {{"state": ..., "actions": ...}}}}.')
    return {name: _parse(f"{path}: {name}", entry) for name, entry in content["norm_stats"].items()}


def _parse(where: str, entry: Any) -> NormStats:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is {entry!r}: expected arrays {FIELDS}.")
    given = {field: value for field in FIELDS if (value := entry.get(field)) is not None}
    if missing := [field for field in ("mean", "std") if field not in given]:
        raise ValueError(f"{where} lacks {missing}; it has {sorted(entry)}.")
    if ("q01" in given) != ("q99" in given):
        raise ValueError(f"{where} has one of q01 and q99: expected both or none.")
    arrays = {}
    for field, value in given.items():
        try:
            with np.errstate(over="ignore"):
                arrays[field] = np.array(value).astype(np.float32, casting="same_kind")
        except (TypeError, ValueError):
            raise ValueError(f"{where}.{field} holds something other than numbers.") from None
    shapes = {field: array.shape for field, array in arrays.items()}
    if len(set(shapes.values())) > 1 or arrays["mean"].ndim != 1 or not arrays["mean"].size:
        raise ValueError(f"{where}: expected one number per dimension in each array, got {shapes}.")
    _check_numbers(where, NormStats(**arrays))
    return NormStats(**arrays)


def _check_numbers(where: str, stats: NormStats) -> None:
    """ValueError that names the first dimensions which no data can have such statistics of."""
    fields = {f: np.asarray(v) for f in FIELDS if (v := getattr(stats, f)) is not None}
    wrong = {f"NaN or Inf in {f}": ~np.isfinite(array) for f, array in fields.items()}
    wrong["a negative std"] = fields["std"] < 0
    if "q01" in fields:
        wrong["q01 above q99"] = fields["q01"] > fields["q99"]
    for what, dimensions in wrong.items():
        if dimensions.any():
            raise ValueError(
                f"{where} has {what}, dimension {np.flatnonzero(dimensions).tolist()}."
            )
