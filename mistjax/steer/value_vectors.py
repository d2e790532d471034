"""The names that each neuron of a policy writes most, by its value vectors.

Source: Geva et al., arXiv 2012.14913 and 2203.14680; for VLAs Häon et al., arXiv 2509.00328.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mistjax.policies.protocol import Policy
from mistjax.policies.value_vectors import ValueVectors
from mistjax.policies.wrapper import language


def value_vectors(policy: Policy, stack: str = "vlm") -> ValueVectors:
    """Value vectors of a policy, or of the one that it is wrapped around.

    Raises:
        ValueError: a stack without names to read it by, or a policy without words.
    """
    return language(policy).value_vectors(stack)


@dataclasses.dataclass(frozen=True, eq=False)
class TopNames:
    """The names that each neuron writes most.

    Attributes:
        ids: into `ValueVectors.names`, best first [L,F,K].
        scores: z-score of the name's logit among all names of that neuron [L,F,K].
    """

    ids: Int[np.ndarray, "l f k"]
    scores: Float[np.ndarray, "l f k"]

    def describe(self, values: ValueVectors, layer: int, neuron: int) -> str:
        """One line: the neuron's names with their scores."""
        pairs = zip(self.ids[layer, neuron], self.scores[layer, neuron], strict=True)
        words = ", ".join(f"{values.names[i].strip('▁')!r} {z:.1f}" for i, z in pairs)
        return f"{values.stack} layer {layer} neuron {neuron}: {words}"


def top_names(values: ValueVectors, k: int = 10, *, max_bytes: int = 2**28) -> TopNames:
    """The k names that each neuron writes most.

    Neurons go through in chunks, so that at most `max_bytes` of logits exist at a time. Cost:
    L F D V multiply-adds; 1.6e14 for pi0's VLM, which is work for a GPU.

    Raises:
        ValueError: k names do not exist.
    """
    if not 1 <= k <= len(values.names):
        raise ValueError(f"k is {k}: the {values.stack!r} stack has {len(values.names)} names.")
    depth, neurons, width = values.vectors.shape
    flat = values.vectors.reshape(-1, width)
    chunk = int(np.clip(max_bytes // (4 * len(values.names)), 1, len(flat)))
    parts = [
        jax.device_get(_top(flat[start : start + chunk], values.scale, values.rows, k=k))
        for start in range(0, len(flat), chunk)
    ]
    scores, ids = (
        np.concatenate(part).reshape(depth, neurons, k) for part in zip(*parts, strict=True)
    )
    return TopNames(ids, scores)


@functools.partial(jax.jit, static_argnames="k")
def _top(vectors, scale, rows, *, k):
    scaled = (vectors * scale[None]).astype(rows.dtype)
    logits = jnp.matmul(scaled, rows.T, preferred_element_type=jnp.float32)
    best, ids = jax.lax.top_k(logits, k)
    spread = jnp.maximum(jnp.std(logits, axis=-1, keepdims=True), 1e-12)
    return (best - jnp.mean(logits, axis=-1, keepdims=True)) / spread, ids
