"""Gates: is the policy outside what it knows, judged without failures?

The Mahalanobis gate on a prompt or vision embedding is `fit_embedding(..., "mahalanobis",
success_only=True)`. The sensitivity gate asks how strongly a flow policy's velocity reacts along a
direction; unusually strong or weak reactions score high. Source: SafeFlow (directional sensitivity
of the velocity field), in the form given below.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct as struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mistjax.detect.data import Episodes
from mistjax.detect.detector import Leaf


def directional_sensitivity(
    velocity: Callable[[Array], Array], x: Float[Array, "b *s"], direction: Float[Array, "b *s"]
) -> Float[Array, " b"]:
    """|J(x) u| with u the unit `direction` of each sample: one forward-mode product, about two
    calls.

    Args:
        velocity: the velocity field at a fixed time and observation, mapping samples independently.
        x: noisy action chunks.
        direction: e.g. the velocity itself, or the step from the last chunk to this one.
    """
    axes = tuple(range(1, x.ndim))
    norm = jnp.sqrt(jnp.sum(direction**2, axis=axes, keepdims=True))
    _, change = jax.jvp(velocity, (x,), (direction / jnp.maximum(norm, 1e-12),))
    return jnp.sqrt(jnp.sum(change**2, axis=axes))


@struct.dataclass
class SensitivityGate:
    """|log sensitivity - mean| / scale over successes. Features of a step: [sensitivity], one
    number.
    """

    mean: Leaf
    scale: Leaf

    def init_state(self, batch: int) -> PyTree:
        return jnp.zeros(batch)

    def logit(self, state: PyTree, features: Float[Array, "b 1"]) -> Float[Array, " b"]:
        del state
        return jnp.abs(jnp.log(features[:, 0]) - self.mean) / self.scale

    def step(
        self, state: PyTree, features: Float[Array, "b 1"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return state, self.logit(state, features)


def fit_sensitivity_gate(episodes: Episodes) -> SensitivityGate:
    """Mean and standard deviation of log sensitivity over the steps of successes.

    Raises:
        ValueError: no successes, more than one feature, or a sensitivity that is not positive.
    """
    frames = episodes.take(np.asarray(episodes.success, bool)).frames()
    if frames.shape[1] != 1 or len(frames) < 2 or not (frames > 0).all():
        raise ValueError(
            f"got {len(frames)} success frames with {frames.shape[1]} features; the gate needs "
            "one "
            "positive sensitivity per step."
        )
    logs = np.log(frames.astype(np.float64))
    scale = logs.std(ddof=1) + 1e-6
    return SensitivityGate(jnp.asarray(logs.mean(), jnp.float32), jnp.asarray(scale, jnp.float32))
