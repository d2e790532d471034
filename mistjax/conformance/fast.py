"""What pi0-FAST is compared in: inputs, prefill, forced and greedy decoding, and the loss.

The original's prefill has its padding on the left, ours on the right: our captures are rolled
before they are compared. Greedy tokens are compared as long as no batch element has written its
end: the original then writes on until all of them end in the same step, ours pads.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from mistjax.conformance.family import Arrays, Family, branch, random_observation
from mistjax.conformance.pi import VLM_CAPTURES, taps
from mistjax.hooks.hooks import Hooks
from mistjax.models import fast
from mistjax.models.config import FastConfig
from mistjax.models.fast import Pi0Fast
from mistjax.models.observation import Observation
from mistjax.models.sampling import prefill

_LOSS = ("tokenized_prompt", "tokenized_prompt_mask", "token_ar_mask", "token_loss_mask")


def _random_inputs(config: FastConfig, seed: int) -> dict[str, Any]:
    rng, length = np.random.default_rng(seed), config.max_token_len
    inputs: dict[str, Any] = random_observation(config, rng)
    written = np.broadcast_to(np.arange(length) >= length // 2, (2, length))
    tokens = rng.integers(2, config.vocab_size, (2, length), dtype=np.int32)
    forced = rng.integers(2, config.vocab_size, (2, config.max_decoding_steps), dtype=np.int32)
    loss = (tokens, np.ones_like(written), written.astype(np.int32), written)
    return inputs | {
        "obs/token_ar_mask": np.zeros((2, length), np.int32),
        "obs/token_loss_mask": np.zeros((2, length), bool),
        "sample/max_decoding_steps": np.int32(config.max_decoding_steps),
        "decode/forced_tokens": forced,
        **{f"loss/{name}": value for name, value in zip(_LOSS, loss, strict=True)},
    }


@jax.default_matmul_precision("highest")
@functools.partial(jax.jit, static_argnums=0)
def _outputs(config: FastConfig, variables: Any, inputs: Arrays) -> dict[str, Any]:
    model: Any = Pi0Fast(config)
    fields: dict[str, Any] = unflatten_dict(branch(inputs, "obs/"), sep="/")
    ar_mask = fields.pop("token_ar_mask")
    del fields["token_loss_mask"]
    obs = Observation(**fields)

    tokens, valid, ar = model.apply(variables, obs, method=Pi0Fast.embed_prefix)
    images = jnp.zeros((valid.shape[0], config.num_image_tokens), jnp.int32)
    out = {"inputs/tokens": tokens, "inputs/mask": valid}
    own = jnp.concatenate([images, ar_mask], axis=1)
    out["inputs/ar_mask"] = own | ar[None].astype(own.dtype)

    prefix = prefill(model, variables, obs, Hooks.of((), taps("vlm")))
    right = jax.vmap(lambda x, n: jnp.roll(x, -n, axis=0))
    padded = jnp.sum(valid, axis=1)
    out["prefill/mask"] = right(valid, padded)
    for name, tap in zip(VLM_CAPTURES, taps("vlm"), strict=True):
        layers = prefix.taps[str(tap)]
        out[f"prefill/capture/{name}"] = jax.vmap(right, in_axes=(0, None))(layers, padded)

    state = fast.start(model, variables, prefix)
    out["prefill/logits_last"] = state.logits

    def forced(state, fed):
        token, step = fed
        state, _ = fast.decode_step(model, variables, state, token, step)
        return state, state.logits

    steps = jnp.arange(config.max_decoding_steps)
    _, logits = jax.lax.scan(forced, state, (inputs["decode/forced_tokens"].T, steps))
    out["decode/logits"] = jnp.swapaxes(logits, 0, 1)
    keys = jax.random.split(jax.random.key(0), valid.shape[0])
    out["sample/tokens_greedy"] = fast.write(model, variables, prefix, keys).tokens

    obs, written = _split(obs, *(inputs[f"loss/{name}"] for name in _LOSS))
    out["loss/value"] = fast.next_token_loss(model, variables, obs, written)
    return out


def _split(obs: Observation, tokens, mask, ar_mask, loss_mask) -> tuple[Observation, Any]:
    """Each example's tokens as prompt (read both ways) and what is written after it (0 =
    padding).
    """
    prompt = mask & (ar_mask == 0)
    after = jnp.sum(prompt, axis=1, keepdims=True) + jnp.arange(tokens.shape[1])[None]
    inside = after < tokens.shape[1]
    after = jnp.minimum(after, tokens.shape[1] - 1)
    learnt = jnp.take_along_axis(jnp.where(mask & loss_mask, tokens, 0), after, axis=1)
    written = jnp.where(inside, learnt, 0)
    fields = {
        "tokenized_prompt": jnp.where(prompt, tokens, 0),
        "tokenized_prompt_mask": prompt,
    }
    return dataclasses.replace(obs, **fields), written


FAST = Family(
    init=fast.init,
    inputs=frozenset(
        {"sample/max_decoding_steps", "decode/forced_tokens"} | {f"loss/{name}" for name in _LOSS}
    ),
    random_inputs=_random_inputs,
    outputs=_outputs,
    prefix_mask="prefill/mask",
    prefix_rows={f"prefill/capture/{name}": 1 for name in VLM_CAPTURES},
)
