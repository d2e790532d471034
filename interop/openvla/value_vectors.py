"""What each FFN neuron of an OpenVLA writes, in words and in actions.

Column j of a layer's down projection is what neuron j adds to the residual stream. OpenVLA's
actions are words of the same vocabulary, so one reading serves both: ids of action bins are named
by their normalised action (`action[+0.51]`) in place of the rare piece whose id they took.

Source: Häon et al., arXiv 2509.00328.
"""

from __future__ import annotations

import torch

from interop.arrays import to_jax
from interop.openvla import actions
from interop.openvla.policy import OpenVLAPolicy
from mistjax.steer.value_vectors import ValueVectors


def value_vectors(policy: OpenVLAPolicy, stack: str = "vlm") -> ValueVectors:
    """Value vectors of the Llama; costs a copy of its down projections.

    Args:
        policy: the policy.
        stack: `vlm` or `action`, the same weights while reading and while decoding.

    Raises:
        ValueError: a stack without a vocabulary.
    """
    if stack not in ("vlm", "action"):
        raise ValueError(f"stack {stack!r} has no vocabulary: expected 'vlm' or 'action'.")
    llama, config = policy.model.language_model, policy.model.config
    known, first = policy.tokenizer.vocab_size, config.action_vocab - config.n_action_bins
    values = actions.decode(torch.arange(first, config.action_vocab).numpy(), config.action_vocab)
    names = [policy.tokenizer.id_to_piece(i) if i < known else f"id[{i}]" for i in range(first)]
    names += [f"action[{value:+.2f}]" for value in values]
    return ValueVectors(
        stack,
        policy.spec.fingerprint,
        to_jax(policy.model.value_vectors()),
        to_jax(llama.model.norm.weight),
        to_jax(llama.lm_head.weight[: len(names)]),
        tuple(names),
    )
