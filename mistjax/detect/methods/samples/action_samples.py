"""Disagreement between several action chunks sampled for the same observation.

Features of a step are the chunks flattened, [samples * horizon * dim]. Action dimensions are
translation 0:3, rotation 3:6 and gripper 6:. Source: SAFE (arXiv 2506.09937), section 5
(sample-consistency baselines).
"""

from __future__ import annotations

from typing import Literal

import flax.struct as struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.accumulate import Accumulate, accumulate_step, init_running

GROUPS = {"translation": slice(0, 3), "rotation": slice(3, 6), "gripper": slice(6, None)}


@struct.dataclass
class ActionVariance:
    """Unbiased variance between samples, summed over a group of action dimensions and the chunk.

    Attributes:
        layout: of the features.
        group: "total"; "generalised" is the determinant of the covariance of the flat chunk (0 up
            to rounding when samples <= horizon * dim); or a group of action dimensions.
        accumulate: how steps become the score.
    """

    layout: ChunkLayout = struct.field(pytree_node=False)
    group: Literal["total", "generalised", "translation", "rotation", "gripper"] = struct.field(
        pytree_node=False, default="total"
    )
    accumulate: Accumulate = struct.field(pytree_node=False, default="none")

    def init_state(self, batch: int) -> PyTree:
        return init_running(batch)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        del state
        chunks = self.layout.unflatten(features)
        if self.group == "generalised":
            flat = chunks.reshape(*chunks.shape[:2], -1)
            centred = flat - flat.mean(1, keepdims=True)
            covariance = centred.swapaxes(1, 2) @ centred / (self.layout.samples - 1)
            return jnp.linalg.det(covariance)
        part = chunks[..., GROUPS.get(self.group, slice(None))]
        return jnp.var(part, axis=1, ddof=1).sum((1, 2))

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return accumulate_step(self.accumulate, state, self.logit(state, features))


def ward_cluster_sizes(points: Float[Array, "s d"], threshold: float) -> Float[Array, " s"]:
    """Sizes of the clusters that Ward linkage forms below `threshold`, 0 in unused slots.

    Merges the two clusters of smallest Ward distance sqrt(2 m n / (m + n)) |a - b| until none is
    below the threshold. Ward distances never fall along the way, so this equals cutting the full
    tree. s - 1 rounds of s x s distances.
    """
    s = points.shape[0]
    upper = jnp.triu(jnp.ones((s, s), bool), 1)

    def merge(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        centres, sizes = carry
        m, n = sizes[:, None], sizes[None, :]
        squared = jnp.sum((centres[:, None] - centres[None]) ** 2, axis=-1)
        distance = jnp.sqrt(2 * m * n / jnp.maximum(m + n, 1) * squared)
        distance = jnp.where(upper & (m > 0) & (n > 0), distance, jnp.inf)
        i, j = jnp.divmod(jnp.argmin(distance), s)
        total = sizes[i] + sizes[j]
        joined = (sizes[i] * centres[i] + sizes[j] * centres[j]) / total
        merged = centres.at[i].set(joined), sizes.at[i].set(total).at[j].set(0.0)
        close = distance[i, j] < threshold
        return jax.tree.map(lambda new, old: jnp.where(close, new, old), merged, carry), None

    start = (points, jnp.ones(s, points.dtype))
    (_, sizes), _ = jax.lax.scan(merge, start, None, length=s - 1)
    return sizes


@struct.dataclass
class ClusterEntropy:
    """Entropy in nats of the cluster sizes of the sampled chunks (Ward linkage cut at
    `threshold`).
    """

    layout: ChunkLayout = struct.field(pytree_node=False)
    threshold: float = struct.field(pytree_node=False, default=0.1)
    accumulate: Accumulate = struct.field(pytree_node=False, default="none")

    def init_state(self, batch: int) -> PyTree:
        return init_running(batch)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Piecewise constant in the features: its gradient is zero."""
        del state
        chunks = self.layout.unflatten(features)
        flat = chunks.reshape(*chunks.shape[:2], -1)
        sizes = jax.vmap(lambda points: ward_cluster_sizes(points, self.threshold))(flat)
        p = jax.lax.stop_gradient(sizes) / self.layout.samples
        return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30)), 0.0), axis=-1)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return accumulate_step(self.accumulate, state, self.logit(state, features))
