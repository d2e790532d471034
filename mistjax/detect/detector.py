"""The detector interface: per-episode state in, one failure score per step out.

A detector is a pytree: its arrays are leaves and its options are static fields, so it passes
through `jit`, `vmap` and `grad` as an argument. Scores grow with the risk of failure. Cost of one
step is the detector's own.

`observe` is the only caller of `step`, so a detector need not handle NaN and Inf.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from mistjax.batches import choose

# A field that holds an array. `Any`: transformations also rebuild pytrees from shapes, sentinels.
Leaf: TypeAlias = Any


@runtime_checkable
class Detector(Protocol):
    """What every failure detector offers."""

    def init_state(self, batch: int) -> PyTree:
        """State of `batch` fresh episodes, every leaf with leading axis [B]."""
        ...

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        """Advance by one policy step; returns the new state and the failure score."""
        ...

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Instantaneous failure evidence of `features`, differentiable: the target of
        attribution.
        """
        ...


def observe(
    detector: Any, state: PyTree, features: Float[Array, "b d"]
) -> tuple[PyTree, Float[Array, " b"]]:
    """`detector.step`, fail-safe: where the features or the score are not finite, the score is
    +inf, which alarms at any threshold, and the state stays as it was. So one broken inference
    alarms once and says nothing about the next ones.

    As the branch of a condition it is not fused with what surrounds it: a batch has the same scores
    bit for bit beside a policy and over a recorded episode.
    """
    finite = jnp.all(jnp.isfinite(features), axis=-1)

    def step(state: PyTree) -> tuple[PyTree, Array]:
        new, score = detector.step(state, features)
        return new, score.astype(jnp.float32)

    def skip(state: PyTree) -> tuple[PyTree, Array]:
        return state, jnp.full(finite.shape, jnp.inf, jnp.float32)

    new, score = jax.lax.cond(jnp.any(finite), step, skip, state)
    sound = finite & jnp.isfinite(score)
    return choose(sound, new, state), jnp.where(sound, score, jnp.inf)


@jax.jit
def score_episodes(
    detector: Any, features: Float[Array, "n t d"], mask: Bool[Array, "n t"]
) -> Float[Array, "n t"]:
    """Scores of whole episodes: `lax.scan` of `observe` over time.

    Steps outside `mask` leave the state alone and repeat the last valid score, so the maximum over
    a padded episode is the maximum over its valid steps. Steps before the first valid one score 0.
    """

    def body(carry: tuple, inputs: tuple) -> tuple:
        state, last = carry
        x, valid = inputs
        state, score = choose(valid, observe(detector, state, x), (state, last))
        return (state, score), score

    n, features = features.shape[0], features.astype(jnp.float32)
    start = (detector.init_state(n), jnp.zeros(n, jnp.float32))
    _, scores = jax.lax.scan(body, start, (features.swapaxes(0, 1), mask.T))
    return scores.T
