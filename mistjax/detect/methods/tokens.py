"""Uncertainty of decoded action tokens: -log probability and entropy, maximum or mean over tokens.

Features of a step are [2 n]: the probability of each of n decoded tokens, then their entropies in
nats, as `token_statistics` makes them from logits. Source: SAFE (arXiv 2506.09937), section 5
(token baselines).
"""

from __future__ import annotations

from typing import Literal

import flax.struct as struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mistjax.detect.methods.accumulate import Accumulate, accumulate_step, init_running


def token_statistics(logits: Float[Array, "*b n v"]) -> Float[Array, "*b m"]:
    """Largest probability of each token, then each token's entropy: m = 2 n.

    Args:
        logits: over the action part of the vocabulary only.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)
    return jnp.concatenate([p.max(-1), entropy], axis=-1)


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
        values = -jnp.log(probability) if self.quantity == "probability" else entropy
        return values.max(-1) if self.statistic == "max" else values.mean(-1)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return accumulate_step(self.accumulate, state, self.logit(state, features))
