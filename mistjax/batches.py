"""Batched pytrees: the leading axes of every leaf are those of the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

AnyArray = Array | np.ndarray


def choose(chosen: Bool[AnyArray, "*b"], new: PyTree, old: PyTree) -> PyTree:
    """`new` in the chosen batch elements, `old` in the others, in every leaf [*b,...]."""

    def pick(new: AnyArray, old: AnyArray) -> Array:
        return jnp.where(jnp.expand_dims(chosen, range(jnp.ndim(chosen), jnp.ndim(old))), new, old)

    return jax.tree.map(pick, new, old)
