"""From tapped activations to the vector that a detector reads.

The same `FeatureSpec` is applied to a live sample and to recorded traces, so training and
monitoring cannot drift apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.hooks.sites import Tap

Pooling = Literal["mean", "first", "last", "concat"]


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Which activations a detector reads.

    Attributes:
        taps: each with a `reduce`; their values are concatenated, layers one after the other.
        steps: how flow steps (or decoded tokens) of an `action` tap are pooled.
    """

    taps: tuple[Tap, ...]
    steps: Pooling = "mean"

    def __post_init__(self):
        unreduced = [str(tap) for tap in self.taps if tap.reduce is None]
        if unreduced or not self.taps:
            raise ValueError(
                f"taps {unreduced or '()'}: a detector reads one vector, so give at least one tap "
                "and each a reduce ('mean' or 'max')."
            )

    def live(self, taps: Mapping[str, Array]) -> Float[Array, "b d"]:
        """Features of `Sample.taps`: values [L,B,*] or [S,L,B,*]."""
        return self._gather({k: jnp.moveaxis(v, _batch_axis(k, v), 0) for k, v in taps.items()})

    def recorded(self, features: Mapping[str, np.ndarray]) -> Float[np.ndarray, "n d"]:
        """Features of `Trace.features`: values [N,L,*] or [N,S,L,*]."""
        return np.asarray(self._gather(features), np.float32)

    def _gather(self, rows: Mapping[str, Any]) -> Any:
        missing = [str(tap) for tap in self.taps if str(tap) not in rows]
        if missing:
            raise ValueError(f"taps {missing} were not recorded; there are {sorted(rows)}.")
        parts = []
        for tap in self.taps:
            value = rows[str(tap)]
            if value.ndim == _reduced_ndim(tap) + 1:
                value = self._pool(value)
            parts.append(value.reshape(value.shape[0], -1))
        numpy = isinstance(parts[0], np.ndarray)
        return np.concatenate(parts, 1) if numpy else jnp.concatenate(parts, axis=1)

    def _pool(self, value: Any) -> Any:
        if self.steps == "mean":
            return value.mean(axis=1)
        if self.steps == "concat":
            return value.reshape(value.shape[0], 1, -1)
        return value[:, 0 if self.steps == "first" else -1]

    def to_json(self) -> dict[str, Any]:
        return {"taps": [str(tap) for tap in self.taps], "steps": self.steps}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureSpec:
        return cls(tuple(Tap.parse(text) for text in data["taps"]), data["steps"])


def _reduced_ndim(tap: Tap) -> int:
    """Axes of a reduced tap without steps, [L,B,D] or [L,B,N,h]."""
    return 4 if tap.point == "attn_heads" else 3


def _batch_axis(name: str, value: Any) -> int:
    return 1 + value.ndim - _reduced_ndim(Tap.parse(name)) if Tap.parse(name).reduce else 0


DEFAULT_FEATURES = FeatureSpec(
    (
        Tap("action.resid", (-1,), "action", "mean"),
        Tap("vlm.resid", None, "image", "mean"),
    )
)
"""What the actions were decoded from, and what was seen: the second shows trouble before anything
has gone wrong, while there is time to steer."""
