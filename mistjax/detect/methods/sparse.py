"""Sparse features as what a detector reads: a TopK autoencoder in front of it.

Source: TopK: Gao et al., arXiv 2406.04093.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mistjax.detect.data import Episodes
from mistjax.hooks.edits import Sparse


@flax.struct.dataclass
class SparseCoder:
    """A TopK autoencoder.

    Attributes:
        encoder: [D,F].
        bias: of the features [F].
        decoder: what each feature writes, unit length [F,D].
        mean: subtracted before, added after [D].
        k: active features per token (static).
    """

    encoder: Float[Array, "d f"]
    bias: Float[Array, " f"]
    decoder: Float[Array, "f d"]
    mean: Float[Array, " d"]
    k: int = flax.struct.field(pytree_node=False)

    def encode(self, x: Float[Array, "*n d"]) -> Float[Array, "*n f"]:
        """Activation of each feature, all but the k largest 0."""
        return Sparse.encode(x, self.encoder, self.bias, self.mean, self.k)

    def decode(self, code: Float[Array, "*n f"]) -> Float[Array, "*n d"]:
        """What stands in for the tokens."""
        return code @ self.decoder + self.mean.reshape((1,) * (code.ndim - 1) + (-1,))

    def summary(self, tokens: Float[Array, "b nd"]) -> Float[Array, "b f"]:
        """Mean activation of each feature over n tokens that stand one after the other."""
        each = tokens.reshape(len(tokens), -1, self.mean.size)
        return self.encode(each).mean(axis=1)


@flax.struct.dataclass
class SparseCoded:
    """The inner detector reads features, each averaged over the tokens (and flow steps) that it is
    given one after the other.

    Attributes:
        detector: the inner detector.
        coder: the autoencoder.
    """

    detector: Any
    coder: SparseCoder

    def init_state(self, batch: int) -> PyTree:
        return self.detector.init_state(batch)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return self.detector.step(state, self.coder.summary(features))

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        return self.detector.logit(state, self.coder.summary(features))


def coded(episodes: Episodes, coder: SparseCoder) -> Episodes:
    """Episodes whose features are those that the inner detector of `SparseCoded` reads; padding
    stays zero.
    """
    rows = [np.asarray(coder.summary(jnp.asarray(row))) for row in np.asarray(episodes.features)]
    mask = np.asarray(episodes.mask)[..., None]
    return dataclasses.replace(episodes, features=np.where(mask, np.stack(rows), 0))
