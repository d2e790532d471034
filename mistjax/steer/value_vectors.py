"""What each FFN neuron writes, in words: value vectors read through the output of their stream.

Row j of a layer's down projection is what neuron j adds to the residual stream per unit of its
activation. The final norm's scale and the output matrix turn such a direction into names: the
vocabulary for the VLM; for the action expert, which has no vocabulary, the signed action dimensions
("+dz" is up, in the env's units). A direction's names are right up to a positive factor, because
the final norm divides by the size of the whole stream.

Source: Geva et al., arXiv 2012.14913 and 2203.14680; for VLAs Häon et al., arXiv 2509.00328.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mistjax.models.pi0 import Pi0
from mistjax.policies.pi import PiPolicy
from mistjax.policies.protocol import Policy


@dataclasses.dataclass(frozen=True, eq=False)
class ValueVectors:
    """The value vectors of one stack and how to read them.

    Attributes:
        stack: `vlm` or `action`.
        policy: fingerprint of the policy.
        vectors: [L,F,D], neuron j of layer l writes `vectors[l, j]`.
        scale: what the final norm multiplies each width dimension by [D].
        rows: output direction of each name [V,D].
        names: of the rows.
    """

    stack: str
    policy: str
    vectors: Float[Array, "l f d"]
    scale: Float[Array, " d"]
    rows: Float[Array, "v d"]
    names: tuple[str, ...]

    def decode(self, directions: Float[Array, "*n d"]) -> Float[Array, "*n v"]:
        """How much each name is written per unit of a direction; float32, all names at once."""
        scaled = (directions * self.scale).astype(self.rows.dtype)
        return jnp.matmul(scaled, self.rows.T, preferred_element_type=jnp.float32)


def value_vectors(policy: Policy, stack: str = "vlm") -> ValueVectors:
    """Value vectors of a policy: what its own method `value_vectors` says, or those of a pi0,
    pi0.5 or pi0-FAST, whose arrays are not copied.

    Raises:
        ValueError: a stack without names to read it by, or a policy of another kind.
    """
    if (own := getattr(policy, "value_vectors", None)) is not None:
        return own(stack)
    if not isinstance(policy, PiPolicy):
        raise ValueError(
            f"{type(policy).__name__} cannot say what its neurons write: give it a method "
            "`value_vectors(stack)`."
        )
    params = policy.variables["params"]
    llm = params["PaliGemma"]["llm"]
    if stack == "vlm":
        vectors, scale = llm["layers"]["mlp"]["linear"], 1 + llm["final_norm"]["scale"]
        count = min(policy.prompt_tokenizer.vocab_size, policy.config.vocab_size)
        rows = llm["embedder"]["input_embedding"][:count]
        names = tuple(policy.prompt_tokenizer.id_to_piece(i) for i in range(count))
    elif stack == "action":
        vectors, scale = llm["layers"]["mlp_1"]["linear"], _action_scale(policy)
        rows, names = _action_rows(policy)
    else:
        raise ValueError(f"stack {stack!r} has no names to read it by: expected 'vlm' or 'action'.")
    return ValueVectors(stack, policy.spec.fingerprint, vectors, scale, rows, names)


def _action_rows(policy: PiPolicy) -> tuple[Array, tuple[str, ...]]:
    """Signed action dimensions in the env's units; the sampler subtracts the velocity, hence -."""
    names, unit = policy.spec.action_names, jnp.asarray(policy.spec.action_scale)
    kernel = policy.variables["params"]["action_out_proj"]["kernel"][:, : len(names)]
    raised = -(kernel * unit).T
    signed = tuple(f"{sign}{name}" for sign in "+-" for name in names)
    return jnp.concatenate([raised, -raised]), signed


def _action_scale(policy: PiPolicy) -> Float[Array, " d"]:
    """The final norm's scale; pi0.5's depends on the flow time, so its mean over the flow steps."""
    config, params = policy.config, policy.variables["params"]
    norm = params["PaliGemma"]["llm"]["final_norm_1"]
    if not config.pi05:
        return 1 + norm["scale"]
    steps = config.num_steps
    x_t = jnp.zeros((steps, config.action_horizon, config.action_dim))
    state, times = jnp.zeros((steps, config.action_dim)), 1 - jnp.arange(steps) / steps
    *_, condition = Pi0(config).apply(policy.variables, state, x_t, times, method=Pi0.embed_suffix)
    dense = norm["Dense_0"]
    scale, _, _ = jnp.split(condition @ dense["kernel"] + dense["bias"], 3, axis=-1)
    return 1 + scale.mean(0)


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
    scaled = (vectors * scale).astype(rows.dtype)
    logits = jnp.matmul(scaled, rows.T, preferred_element_type=jnp.float32)
    best, ids = jax.lax.top_k(logits, k)
    spread = jnp.maximum(jnp.std(logits, axis=-1, keepdims=True), 1e-12)
    return (best - jnp.mean(logits, axis=-1, keepdims=True)) / spread, ids
