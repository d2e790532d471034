"""Detectors made from detectors: z-scored input, sliding windows of scores, alarms that must
agree.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.struct as struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mistjax.batches import choose
from mistjax.detect.data import Episodes
from mistjax.detect.detector import Leaf


@struct.dataclass
class Standardised:
    """z-scores the features with `mean` and `scale` [d] before the inner detector reads them."""

    detector: Any
    mean: Leaf
    scale: Leaf

    @staticmethod
    def statistics(episodes: Episodes) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """Mean and unbiased standard deviation over all valid steps (1 where a feature is
        constant).
        """
        frames = episodes.frames().astype(np.float64)
        deviation = frames.std(0, ddof=1)
        scale = np.where(deviation > 0, deviation, 1.0)
        return frames.mean(0).astype(np.float32), scale.astype(np.float32)

    def _scaled(self, features: Array) -> Array:
        return (features - self.mean[None]) / self.scale[None]

    def init_state(self, batch: int) -> PyTree:
        return self.detector.init_state(batch)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return self.detector.step(state, self._scaled(features))

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        return self.detector.logit(state, self._scaled(features))


@struct.dataclass
class Windowed:
    """Sum of the inner detector's last `window` scores (fewer at the start), each plus 1e-6.

    Source: FIPER (NeurIPS 2025), sliding-window aggregation.
    """

    detector: Any
    window: int = struct.field(pytree_node=False)

    def init_state(self, batch: int) -> PyTree:
        recent = jnp.zeros((batch, self.window), jnp.float32)
        return {"inner": self.detector.init_state(batch), "recent": recent}

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        inner, score = self.detector.step(state["inner"], features)
        recent = jnp.concatenate([state["recent"][:, 1:], score[:, None] + 1e-6], axis=1)
        return {"inner": inner, "recent": recent}, recent.sum(1)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        return self.detector.logit(state["inner"], features)


@struct.dataclass
class Pooled:
    """The inner detector reads the mean of every `window` steps, and its score stands until the
    next: consecutive steps of a robot say nearly the same. Before the first it is 0.

    Source: Hide-and-Seek (arXiv 2605.30834), windows without overlap.

    Attributes:
        detector: the inner detector.
        window: steps.
        dim: numbers of a step.
    """

    detector: Any
    window: int = struct.field(pytree_node=False)
    dim: int = struct.field(pytree_node=False)

    def init_state(self, batch: int) -> PyTree:
        return {
            "inner": self.detector.init_state(batch),
            "total": jnp.zeros((batch, self.dim), jnp.float32),
            "count": jnp.zeros(batch, jnp.float32),
            "score": jnp.zeros(batch, jnp.float32),
        }

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        total, count = state["total"] + features, state["count"] + 1
        inner, score = self.detector.step(state["inner"], total / self.window)
        full = count == self.window
        inner, score = choose(full, (inner, score), (state["inner"], state["score"]))
        total, count = choose(~full, (total, count), (0 * total, 0 * count))
        return {"inner": inner, "total": total, "count": count, "score": score}, score

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Evidence of the window so far."""
        mean = (state["total"] + features) / (state["count"] + 1)[:, None]
        return self.detector.logit(state["inner"], mean)


@struct.dataclass
class Agreement:
    """Combines detectors by their scores relative to their thresholds; above 1 is an alarm.

    Attributes:
        detectors: tuple of detectors with positive scores.
        limits: tuple of [t_max] thresholds, the last entry holding for later steps.
        widths: number of leading features each detector reads, in order; they are concatenated.
        need: "all" alarms when every detector does (minimum), "any" when one does (maximum).

    Source: FIPER (NeurIPS 2025), AND and OR of RND-OE and ACE.
    """

    detectors: Any
    limits: Any
    widths: tuple[int, ...] = struct.field(pytree_node=False)
    need: Literal["all", "any"] = struct.field(pytree_node=False, default="all")

    def _parts(self, features: Array) -> list[Array]:
        ends = np.cumsum(self.widths)
        if features.shape[-1] != ends[-1]:
            raise ValueError(
                f"expected {ends[-1]} features ({self.widths} in order); got {features.shape[-1]}."
            )
        return jnp.split(features, [int(e) for e in ends[:-1]], axis=-1)

    def _combine(self, relative: list[Array]) -> Array:
        stacked = jnp.stack(relative)
        return stacked.min(0) if self.need == "all" else stacked.max(0)

    def init_state(self, batch: int) -> PyTree:
        inner = tuple(d.init_state(batch) for d in self.detectors)
        return {"inner": inner, "step": jnp.zeros(batch, jnp.int32)}

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        inner, relative = [], []
        parts = zip(self.detectors, self.limits, state["inner"], self._parts(features), strict=True)
        for detector, limit, s, x in parts:
            s, score = detector.step(s, x)
            inner.append(s)
            relative.append(score / limit[jnp.minimum(state["step"], limit.shape[0] - 1)])
        return {"inner": tuple(inner), "step": state["step"] + 1}, self._combine(relative)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        parts = zip(self.detectors, self.limits, state["inner"], self._parts(features), strict=True)
        return self._combine(
            [
                d.logit(s, x) / lim[jnp.minimum(state["step"], lim.shape[0] - 1)]
                for d, lim, s, x in parts
            ]
        )


def pooled(episodes: Episodes, window: int) -> Episodes:
    """Episodes whose steps are the means of `window` consecutive ones, the last one of those that
    are left: what the inner detector of `Pooled` reads.
    """
    if window == 1:
        return episodes
    mask = np.asarray(episodes.mask)
    more = -mask.shape[1] % window
    valid = np.pad(mask, ((0, 0), (0, more))).reshape(len(mask), -1, window)
    x = np.where(mask[..., None], np.asarray(episodes.features), 0)
    x = np.pad(x, ((0, 0), (0, more), (0, 0))).reshape(*valid.shape, -1).sum(2)
    mean = (x / np.maximum(valid.sum(2), 1)[..., None]).astype(np.float32)
    stop = -(-np.asarray(episodes.earliest_stop) // window)
    return dataclasses.replace(episodes, features=mean, mask=valid.any(2), earliest_stop=stop)


def standardise(
    episodes: Episodes, mean: Float[np.ndarray, " d"], scale: Float[np.ndarray, " d"]
) -> Episodes:
    """Episodes with z-scored features; padding stays zero."""
    z = (np.asarray(episodes.features) - mean) / scale
    z = np.where(np.asarray(episodes.mask)[..., None], z, 0.0).astype(np.float32)
    return dataclasses.replace(episodes, features=z)
