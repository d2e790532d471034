"""Controls: what a detector scores that knows nothing but the time, or learned from shuffled
labels.

A result that does not beat both says nothing about the features.
"""

from __future__ import annotations

import dataclasses

import flax.struct as struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mistjax.detect.data import Episodes


@struct.dataclass
class TrajectoryLength:
    """Score = steps so far. 0.5 AUC by earliest stop; high over full episodes where failures run to
    the limit.
    """

    def init_state(self, batch: int) -> PyTree:
        return jnp.zeros(batch, jnp.float32)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        del features
        return state + 1, state + 1

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        return state + 1 + 0 * features.sum(-1)


def shuffle_labels(episodes: Episodes, seed: int) -> Episodes:
    """The same episodes with outcomes permuted."""
    outcomes = np.random.default_rng(seed).permutation(np.asarray(episodes.success))
    return dataclasses.replace(episodes, success=outcomes)
