"""Gates: is the policy outside what it knows, judged without failures?

The Mahalanobis gate on a prompt or vision embedding is `fit_embedding(..., "mahalanobis",
success_only=True)`. The sensitivity gate asks how strongly a flow policy's velocity reacts along
itself (`policies.sensitivity`); unusually strong or weak reactions score high. Source: SafeFlow.
"""

from __future__ import annotations

import flax.struct as struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mistjax.detect.data import Episodes
from mistjax.detect.detector import Leaf


@struct.dataclass
class SensitivityGate:
    """|log sensitivity - mean| / scale over successes. Features of a step: [sensitivity], one
    number.
    """

    mean: Leaf
    scale: Leaf

    def init_state(self, batch: int) -> PyTree:
        return jnp.zeros(batch, jnp.float32)

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
            f"got {len(frames)} success frames with {frames.shape[1]} features; the gate needs one "
            "positive sensitivity per step."
        )
    logs = np.log(frames.astype(np.float64))
    scale = logs.std(ddof=1) + 1e-6
    return SensitivityGate(jnp.asarray(logs.mean(), jnp.float32), jnp.asarray(scale, jnp.float32))
