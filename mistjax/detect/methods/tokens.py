"""Uncertainty of decoded action tokens: -log probability and entropy, maximum or mean over tokens.

Features of a step are [2 n]: the probability of each of n decoded tokens, then their entropies in
nats. A token with probability 0 was not decoded (a shorter action) and does not count. Source: SAFE
(arXiv 2506.09937), section 5 (token baselines).
"""

from __future__ import annotations

from typing import Literal

import flax.struct as struct
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mistjax.detect.methods.accumulate import Accumulate, accumulate_step, init_running


@struct.dataclass
class TokenUncertainty:
    """`statistic` over tokens of "-log p" (probability) or entropy, accumulated over steps."""

    quantity: Literal["probability", "entropy"] = struct.field(pytree_node=False)
    statistic: Literal["max", "mean"] = struct.field(pytree_node=False)
    accumulate: Accumulate = struct.field(pytree_node=False, default="none")

    def init_state(self, batch: int) -> PyTree:
        return init_running(batch)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        del state
        probability, entropy = jnp.split(features, 2, axis=-1)
        decoded = probability > 0
        log_prob = jnp.log(jnp.where(decoded, probability, 1.0))
        values = jnp.where(decoded, -log_prob if self.quantity == "probability" else entropy, 0.0)
        if self.statistic == "max":
            return values.max(-1)
        return values.sum(-1) / jnp.maximum(decoded.sum(-1, dtype=values.dtype), 1)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return accumulate_step(self.accumulate, state, self.logit(state, features))
