"""FIPER's two scores: novelty of the observation (RND-OE) and entropy of the sampled actions (ACE).

`fiper_alarm` combines them.
Source: FIPER (Römer et al., NeurIPS 2025).
"""

from __future__ import annotations

from typing import Any

import flax.struct as struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mistjax.detect.data import Episodes
from mistjax.detect.detector import Leaf
from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.density.minimise import minimise

TARGET_WIDTHS = (1024, 2048, 4096, 512)
PREDICTOR_WIDTHS = (1024, 2048, 4096, 2048, 1024, 512)


@struct.dataclass
class ActionChunkEntropy:
    """Mean over the horizon of the entropy (bits) of sampled positions in a grid of cells [3].

    Features of a step are sampled chunks as in `action_samples`; only their first three dimensions,
    positions, count. The grid starts 1% of the samples' range below their minimum. Cost: samples **
    2 x horizon.
    """

    cell: Leaf
    layout: ChunkLayout = struct.field(pytree_node=False)

    def init_state(self, batch: int) -> PyTree:
        return jnp.zeros(batch, jnp.float32)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Piecewise constant in the features: its gradient is zero."""
        del state
        x = jax.lax.stop_gradient(self.layout.unflatten(features)[..., :3])
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        cells = jnp.floor((x - (low - 0.01 * (high - low))) / self.cell[None, None, None]).swapaxes(
            1, 2
        )
        same = jnp.all(cells[:, :, :, None] == cells[:, :, None], axis=-1)
        share = same.mean(-1)  # of all samples, how many are in this sample's cell
        return -jnp.log2(share).mean((1, 2))

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return state, self.logit(state, features)


def fit_action_chunk_entropy(
    episodes: Episodes, *, layout: ChunkLayout, factor: float = 0.03, cubic: bool = False
) -> ActionChunkEntropy:
    """Cell size = factor x range of all sampled positions, per dimension.

    Args:
        episodes: calibration successes.
        layout: of their features.
        factor: cell size relative to the range.
        cubic: the largest cell side for all dimensions.
    """
    chunks = layout.unflatten(jnp.asarray(episodes.frames()))
    x = np.asarray(chunks)[..., :3].reshape(-1, 3)
    span = np.ptp(x, axis=0)
    span = np.where((span == 0) | cubic, span.max(), span)
    return ActionChunkEntropy(jnp.asarray(factor * span, jnp.float32), layout)


def _mlp(key: PRNGKeyArray, dim: int, widths: tuple[int, ...]) -> tuple[dict[str, Array], ...]:
    """Orthogonal kernels with gain sqrt 2, zero biases."""
    orthogonal = jax.nn.initializers.orthogonal(2**0.5)
    keys = jax.random.split(key, len(widths))
    shapes = zip((dim, *widths[:-1]), widths, strict=True)
    return tuple(
        {
            "kernel": orthogonal(k, shape, jnp.float32),
            "bias": jnp.zeros(shape[1], jnp.float32),
        }
        for k, shape in zip(keys, shapes, strict=True)
    )


def _forward(layers: Any, x: Array) -> Array:
    """The first three hidden layers leak (slope 0.01), later ones do not."""
    for i, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"][None]
        if i < len(layers) - 1:
            x = jax.nn.leaky_relu(x) if i < 3 else jax.nn.relu(x)
    return x


@struct.dataclass
class ObservationNovelty:
    """RND-OE: distance between a frozen random network and its imitation on successful
    observations.
    """

    target: Leaf
    predictor: Leaf

    def init_state(self, batch: int) -> PyTree:
        return jnp.zeros(batch, jnp.float32)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        del state
        difference = _forward(self.predictor, features) - _forward(self.target, features)
        return jnp.sqrt(jnp.sum((difference + 1e-6) ** 2, axis=-1))

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return state, self.logit(state, features)


def fit_observation_novelty(
    episodes: Episodes,
    *,
    target_widths: tuple[int, ...] = TARGET_WIDTHS,
    predictor_widths: tuple[int, ...] = PREDICTOR_WIDTHS,
    epochs: int = 250,
    batch_size: int = 256,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> ObservationNovelty:
    """Train on the successes: AdamW with a cosine schedule, best epoch on a random tenth of the
    frames.
    """
    good = np.asarray(episodes.success)
    if not good.any():
        raise ValueError("no successful episode; RND-OE learns what successes look like.")
    frames = np.random.default_rng(seed).permutation(episodes.take(good).frames())
    held, frames = np.split(frames, [max(len(frames) // 10, 1)])
    keys = jax.random.split(jax.random.key(seed), 3)
    target = _mlp(keys[0], episodes.dim, target_widths)
    predictor = _mlp(keys[1], episodes.dim, predictor_widths)
    steps = epochs * max(len(frames) // min(batch_size, len(frames)), 1)
    schedule = optax.cosine_decay_schedule(learning_rate, steps, alpha=1e-6 / learning_rate)

    def loss(params: PyTree, target: PyTree, batch: Array, key: Array) -> Array:
        del key
        return ObservationNovelty(target, params).logit(None, batch).mean()

    predictor, _ = minimise(
        loss,
        predictor,
        target,
        jnp.asarray(frames),
        keys[2],
        optimizer=optax.adamw(schedule, weight_decay=1e-5),
        epochs=epochs,
        batch_size=batch_size,
        validation=jnp.asarray(held),
    )
    return ObservationNovelty(target, predictor)
