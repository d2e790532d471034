"""Detectors without training: how far is a feature from the successes, and how near to the
failures?

score = distance to success frames - distance to failure frames; with one class only (fitted on
successes) the first term alone. Distances: Mahalanobis, Euclidean and cosine k-nearest-neighbour,
nearest PCA-KMeans centroid. Source: SAFE (arXiv 2506.09937), section 5 (baselines). A k-NN step
costs batch x frames x D and keeps every training frame in memory.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.struct as struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mistjax.detect.data import Episodes
from mistjax.detect.detector import Leaf
from mistjax.detect.methods.accumulate import Accumulate, accumulate_step, init_running


@struct.dataclass
class Mahalanobis:
    """sqrt((x - mean)^T precision (x - mean)); mean [d], precision [d, d]."""

    mean: Leaf
    precision: Leaf

    @classmethod
    def fit(cls, frames: Float[np.ndarray, "m d"], *, ridge: float = 1e-4) -> Mahalanobis:
        """Pseudo-inverse of the unbiased covariance plus `ridge` on its diagonal, in float64."""
        x = np.asarray(frames, np.float64)
        covariance = np.atleast_2d(np.cov(x, rowvar=False)) + ridge * np.eye(x.shape[1])
        precision = np.linalg.pinv(covariance, hermitian=True)
        return cls(jnp.asarray(x.mean(0), jnp.float32), jnp.asarray(precision, jnp.float32))

    def __call__(self, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        x = features - self.mean[None]
        return jnp.sqrt(jnp.maximum(jnp.sum((x @ self.precision) * x, axis=-1), 0.0))


@struct.dataclass
class NearestNeighbours:
    """Mean distance to the k nearest stored frames; frames [m, d]. Cosine distance is 1 -
    cosine.
    """

    frames: Leaf
    k: int = struct.field(pytree_node=False, default=10)
    metric: Literal["euclid", "cosine"] = struct.field(pytree_node=False, default="euclid")

    @classmethod
    def fit(
        cls, frames: Float[np.ndarray, "m d"], *, k: int = 10, metric: Literal["euclid", "cosine"]
    ) -> NearestNeighbours:
        """Keep the frames. Raises ValueError when there are fewer than k."""
        if len(frames) < k:
            raise ValueError(
                f"{k} nearest neighbours of only {len(frames)} frames; lower k or add episodes."
            )
        return cls(jnp.asarray(frames, jnp.float32), k, metric)

    def __call__(self, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        if self.metric == "cosine":
            unit = [
                x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)
                for x in (features, self.frames)
            ]
            nearest = jax.lax.top_k(unit[0] @ unit[1].T, self.k)[0]
            return jnp.mean(1.0 - nearest, axis=-1)
        cross = features @ self.frames.T
        squared = jnp.sum(self.frames**2, axis=-1)[None] - 2 * cross
        nearest = -jax.lax.top_k(-squared, self.k)[0] + jnp.sum(features**2, axis=-1, keepdims=True)
        # the gradient of sqrt at 0 is infinite; a stored frame itself has distance 0
        return jnp.mean(jnp.where(nearest > 0, jnp.sqrt(jnp.maximum(nearest, 1e-30)), 0.0), axis=-1)


@struct.dataclass
class NearestCentroid:
    """Euclidean distance to the nearest KMeans centroid after PCA; mean [d], components [p, d],
    centroids [c, p].
    """

    mean: Leaf
    components: Leaf
    centroids: Leaf

    @classmethod
    def fit(
        cls,
        frames: Float[np.ndarray, "m d"],
        *,
        dim: int = 64,
        clusters: int = 16,
        seed: int = 0,
    ) -> NearestCentroid:
        """PCA to `dim` and KMeans, by scikit-learn."""
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA

        dim, clusters = min(dim, *frames.shape), min(clusters, len(frames))
        pca = PCA(dim, random_state=seed).fit(frames)
        centroids = KMeans(clusters, random_state=seed).fit(pca.transform(frames)).cluster_centers_
        as_jax = [jnp.asarray(x, jnp.float32) for x in (pca.mean_, pca.components_, centroids)]
        return cls(*as_jax)

    def __call__(self, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        x = (features - self.mean[None]) @ self.components.T
        squared = jnp.sum((x[:, None] - self.centroids[None]) ** 2, axis=-1)
        return jnp.sqrt(jnp.maximum(jnp.min(squared, axis=-1), 1e-30))


@struct.dataclass
class EmbeddingDetector:
    """Distance to successes minus distance to failures, accumulated over time.

    Attributes:
        to_success: distance to success frames.
        to_failure: distance to failure frames; None scores by the first alone.
        accumulate: how distances become the score.
    """

    to_success: Any
    to_failure: Any = None
    accumulate: Accumulate = struct.field(pytree_node=False, default="sum")

    def init_state(self, batch: int) -> PyTree:
        return init_running(batch)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        del state
        near = self.to_success(features)
        return near if self.to_failure is None else near - self.to_failure(features)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return accumulate_step(self.accumulate, state, self.logit(state, features))


DistanceName = Literal["mahalanobis", "euclid", "cosine", "pca_kmeans"]


def fit_embedding(
    episodes: Episodes,
    distance: DistanceName,
    *,
    success_only: bool = False,
    accumulate: Accumulate = "sum",
    **config: Any,
) -> EmbeddingDetector:
    """Fit one distance per class.

    Args:
        episodes: training episodes.
        distance: which distance.
        success_only: leave failures out.
        accumulate: how distances become the score.
        **config: k (k-NN), ridge (Mahalanobis), dim, clusters and seed (PCA-KMeans). PCA-KMeans
            gives each class a basis of its own; the release measures both in that of the successes.

    Raises:
        ValueError: a class without episodes, or non-finite features.
    """
    success = np.asarray(episodes.success)
    if not success.any() or not (success_only or not success.all()):
        raise ValueError(
            f"{success.sum()} of {len(success)} episodes succeeded; this detector needs successes"
            + (" and failures (or pass success_only=True)." if not success_only else ".")
        )
    if not np.isfinite(episodes.frames()).all():
        raise ValueError(
            "training features contain NaN or Inf; drop those episodes or fix the tap that "
            "recorded them."
        )

    def fit(frames: np.ndarray) -> Any:
        if distance == "mahalanobis":
            return Mahalanobis.fit(frames, **config)
        if distance == "pca_kmeans":
            return NearestCentroid.fit(frames, **config)
        return NearestNeighbours.fit(frames, metric=distance, **config)

    near = fit(episodes.take(success).frames())
    far = None if success_only else fit(episodes.take(~success).frames())
    return EmbeddingDetector(near, far, accumulate)
