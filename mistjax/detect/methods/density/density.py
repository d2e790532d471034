"""RND and logpZO: is this step like the successes, and unlike the failures?

RND: a predictor per class learns to imitate a frozen random U-Net on (features, action chunk); its
error is small where it was trained. logpZO: a flow per class is trained from data to noise; the
squared norm of where it carries the features in one Euler step is large for unlikely features. Both
score success minus failure. Source: FAIL-Detect (arXiv 2503.08558); SAFE (arXiv 2506.09937),
section 5. The full-size networks have 62 M parameters each; a CPU step then costs tens of
milliseconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
from mistjax.detect.methods.density.unet import UNet1D, to_sequence

CHANNELS = (256, 512, 1024)
STEP_DIM = 128


@struct.dataclass
class RND:
    """Random network distillation. Features of a step: [features, flat action chunk].

    Attributes:
        target: frozen random parameters.
        to_success: predictor of successes.
        to_failure: predictor of failures, or None.
        action_dim: size of one action.
        chunk: size of the flat action chunk at the end of the features.
        channels: U-Net widths.
        step_dim: U-Net step embedding.
    """

    target: Leaf
    to_success: Leaf
    to_failure: Leaf
    action_dim: int = struct.field(pytree_node=False)
    chunk: int = struct.field(pytree_node=False)
    channels: tuple[int, ...] = struct.field(pytree_node=False, default=CHANNELS)
    step_dim: int = struct.field(pytree_node=False, default=STEP_DIM)

    @property
    def _network(self) -> UNet1D:
        return UNet1D(self.channels, step_dim=self.step_dim, scale=True)

    def init_params(self, key: PRNGKeyArray, features: Float[Array, "n d"]) -> PyTree:
        """Random parameters for features of this shape."""
        return jax.jit(self._network.init)(key, *self._inputs(features))["params"]

    def _inputs(self, features: Array) -> tuple[Array, Array, Array]:
        condition, action = features[:, : -self.chunk], features[:, -self.chunk :]
        sequence = to_sequence(action, self.action_dim, 2 ** (len(self.channels) - 1))
        return sequence, jnp.zeros(features.shape[0], jnp.float32), condition

    def error(self, predictor: PyTree, features: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Mean over positions of the L2 distance (1e-6 added to differences) to the target."""
        inputs = self._inputs(features)
        predicted, wanted = (
            jnp.asarray(self._network.apply({"params": p}, *inputs))
            for p in (predictor, self.target)
        )
        return jnp.sqrt(jnp.sum((predicted - wanted + 1e-6) ** 2, axis=-1)).mean(1)

    def init_state(self, batch: int) -> PyTree:
        return jnp.zeros(batch, jnp.float32)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        del state
        near = self.error(self.to_success, features)
        return near if self.to_failure is None else near - self.error(self.to_failure, features)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return state, self.logit(state, features)


@struct.dataclass
class LogpZO:
    """One-step flow density of features [d].

    Attributes:
        to_success: flow of successes.
        to_failure: flow of failures, or None.
        width: features are reshaped to rows of this size.
        channels: U-Net widths.
        step_dim: U-Net step embedding.
    """

    to_success: Leaf
    to_failure: Leaf
    width: int = struct.field(pytree_node=False, default=20)
    channels: tuple[int, ...] = struct.field(pytree_node=False, default=CHANNELS)
    step_dim: int = struct.field(pytree_node=False, default=STEP_DIM)

    @property
    def _network(self) -> UNet1D:
        return UNet1D(self.channels, step_dim=self.step_dim, scale=False)

    def rows(self, features: Float[Array, "n d"]) -> Float[Array, "n h c"]:
        """Features as the network's input sequence."""
        return to_sequence(features, self.width, 2 ** (len(self.channels) - 1))

    def init_params(self, key: PRNGKeyArray, features: Float[Array, "n d"]) -> PyTree:
        """Random parameters for features of this shape."""
        x = self.rows(features)
        return jax.jit(self._network.init)(key, x, jnp.zeros(x.shape[0], jnp.float32))["params"]

    def flow_loss(
        self,
        flow: PyTree,
        features: Float[Array, "n d"],
        noise: Float[Array, "n h c"],
        time: Float[Array, " n"],
    ) -> Float[Array, ""]:
        """Mean squared error of the velocity z - x at x_t = (1 - t) x + t z; the network reads
        floor(100 t).
        """
        x = self.rows(features)
        t = time[:, None, None]
        mixed = (1 - t) * x + t * noise
        velocity = jnp.asarray(self._network.apply({"params": flow}, mixed, jnp.floor(100 * time)))
        return jnp.mean((velocity - (noise - x)) ** 2)

    def _distance(self, flow: PyTree, features: Array) -> Array:
        x = self.rows(features)
        velocity = jnp.asarray(
            self._network.apply({"params": flow}, x, jnp.zeros(x.shape[0], jnp.float32))
        )
        return jnp.sum((x + velocity) ** 2, axis=(1, 2))

    def init_state(self, batch: int) -> PyTree:
        return jnp.zeros(batch, jnp.float32)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        del state
        near = self._distance(self.to_success, features)
        return near if self.to_failure is None else near - self._distance(self.to_failure, features)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return state, self.logit(state, features)


def fit_rnd(
    episodes: Episodes,
    *,
    layout: ChunkLayout,
    channels: tuple[int, ...] = CHANNELS,
    step_dim: int = STEP_DIM,
    seed: int = 0,
    **training: Any,
) -> RND:
    """Draw a target and train a predictor per class; `training` as in `_fit_classes`."""
    sizes = layout.dim, layout.size, channels, step_dim
    detector = RND(None, None, None, *sizes)
    target = detector.init_params(jax.random.key(seed + 1), jnp.asarray(episodes.features[:1, 0]))

    def loss(params: PyTree, target: PyTree, batch: Array, key: Array) -> Array:
        del key
        return RND(target, None, None, *sizes).error(params, batch).mean()

    detector = dataclasses.replace(detector, target=target)
    return _fit_classes(detector, loss, target, episodes, seed=seed, **training)


def fit_logpzo(
    episodes: Episodes,
    *,
    width: int = 20,
    channels: tuple[int, ...] = CHANNELS,
    step_dim: int = STEP_DIM,
    seed: int = 0,
    **training: Any,
) -> LogpZO:
    """Train a flow per class; `training` as in `_fit_classes`."""
    detector = LogpZO(None, None, width, channels, step_dim)

    def loss(params: PyTree, fixed: PyTree, batch: Array, key: Array) -> Array:
        del fixed
        a, b = jax.random.split(key)
        noise = jax.random.normal(a, detector.rows(batch).shape, jnp.float32)
        time = jax.random.uniform(b, batch.shape[:1], jnp.float32)
        return detector.flow_loss(params, batch, noise, time)

    return _fit_classes(detector, loss, None, episodes, seed=seed, **training)


def _fit_classes(
    detector: Any,
    loss: Callable[..., Array],
    fixed: PyTree,
    episodes: Episodes,
    *,
    success_only: bool = False,
    epochs: int = 200,
    batch_size: int = 512,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> Any:
    """Adam on the frames of each class; the release takes batches of 32 episodes instead."""
    success = np.asarray(episodes.success, bool)
    wanted = (
        {"to_success": success} if success_only else {"to_success": success, "to_failure": ~success}
    )
    if not all(w.any() for w in wanted.values()):
        raise ValueError(
            f"{success.sum()} of {len(success)} episodes succeeded; this detector needs successes"
            + ("." if success_only else " and failures (or pass success_only=True).")
        )
    fitted = {}
    for i, (name, rows) in enumerate(wanted.items()):
        init, order = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
        frames = jnp.asarray(episodes.take(rows).frames())
        fitted[name], _ = minimise(
            loss,
            detector.init_params(init, frames[:1]),
            fixed,
            frames,
            order,
            optimizer=optax.adam(learning_rate),
            epochs=epochs,
            batch_size=batch_size,
        )
    return dataclasses.replace(detector, **fitted)
