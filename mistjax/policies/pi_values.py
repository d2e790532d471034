"""Value vectors of pi0, pi0.5 and pi0-FAST, read off their parameters; nothing is copied."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.fast_language import FastTokenizer
from mistjax.models.pi0 import Pi0
from mistjax.models.tokenizers import PromptTokenizer
from mistjax.policies.protocol import PolicySpec
from mistjax.policies.value_vectors import ValueVectors


def pi_value_vectors(
    config: Pi0Config | FastConfig,
    variables: Any,
    tokenizer: PromptTokenizer,
    spec: PolicySpec,
    stack: str,
) -> ValueVectors:
    """Value vectors of the stack `vlm`, or of the action expert.

    Raises:
        ValueError: a stack without names to read it by.
    """
    llm = variables["params"]["PaliGemma"]["llm"]
    if stack == "vlm":
        vectors, scale = llm["layers"]["mlp"]["linear"], 1 + llm["final_norm"]["scale"]
        count = min(tokenizer.vocab_size, config.vocab_size)
        rows = llm["embedder"]["input_embedding"][:count]
        names = tuple(tokenizer.id_to_piece(i) for i in range(count))
    elif stack == "action" and isinstance(config, Pi0Config):
        vectors, scale = llm["layers"]["mlp_1"]["linear"], _action_scale(config, variables)
        rows, names = _action_rows(variables, spec)
    else:
        raise ValueError(
            f"stack {stack!r} has no names to read it by: expected 'vlm', or 'action' where there "
            "is an action expert."
        )
    actions = np.ones(len(names), bool) if stack == "action" else None
    return ValueVectors(stack, spec.fingerprint, vectors, scale, rows, names, actions)


def fast_value_vectors(policy: str, variables: Any, tokenizer: FastTokenizer) -> ValueVectors:
    """Of pi0-FAST's only network while it writes an action: words and action tokens as names.

    Args:
        policy: its fingerprint.
        variables: of the network.
        tokenizer: names the tokens.
    """
    llm = variables["params"]["PaliGemma"]["llm"]
    words = np.arange(min(tokenizer.prompts.vocab_size, tokenizer.vocab_size))
    written = np.flatnonzero(tokenizer.is_action)
    ids = np.concatenate([np.setdiff1d(words, written), written])
    return ValueVectors(
        "action",
        policy,
        llm["layers"]["mlp"]["linear"],
        1 + llm["final_norm"]["scale"],
        llm["embedder"]["input_embedding"][ids],
        tuple(tokenizer.id_to_piece(int(i)) for i in ids),
        tokenizer.is_action[ids],
    )


def _action_rows(variables: Any, spec: PolicySpec) -> tuple[Array, tuple[str, ...]]:
    """Signed action dimensions in the env's units; the sampler subtracts the velocity, hence -."""
    names, unit = spec.action_names, jnp.asarray(spec.action_scale)
    kernel = variables["params"]["action_out_proj"]["kernel"][:, : len(names)]
    raised = -(kernel * unit[None]).T
    signed = tuple(f"{sign}{name}" for sign in "+-" for name in names)
    return jnp.concatenate([raised, -raised]), signed


def _action_scale(config: Pi0Config, variables: Any) -> Float[Array, " d"]:
    """The final norm's scale; pi0.5's depends on the flow time, so its mean over the flow steps."""
    norm = variables["params"]["PaliGemma"]["llm"]["final_norm_1"]
    if not config.pi05:
        return 1 + norm["scale"]
    steps = config.num_steps
    x_t = jnp.zeros((steps, config.action_horizon, config.action_dim))
    state, times = jnp.zeros((steps, config.action_dim)), 1 - jnp.arange(steps) / steps
    *_, condition = Pi0(config).apply(variables, state, x_t, times, method=Pi0.embed_suffix)
    dense = norm["Dense_0"]
    scale, _, _ = jnp.split(condition @ dense["kernel"] + dense["bias"][None], 3, axis=-1)
    return 1 + scale.mean(0)
