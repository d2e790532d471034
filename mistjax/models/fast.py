"""pi0-FAST: one Gemma stack reads cameras and prompt, then writes the action chunk as tokens.

In the order that data flows: prefix -> KV cache and first logits; one decoded token at a time ->
the next logits. The original rolls each prompt's padding to the left before it runs the prefix;
masked attention does not care where the padding is, so prompts stay as they are here and a token
position means the same in all of them, which taps and edits rely on.

Source: FAST (arXiv 2501.09747), pi0-FAST. Parameter tree and conventions: openpi, among them that
the token of step s (from 0) sits at position `prompt length + s + 1`; see
`FastConfig.decoding_gap`. One difference: in bfloat16 openpi keeps rotated queries and keys in
float32, here they have the compute dtype.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from mistjax.hooks.hooks import Hooks
from mistjax.hooks.interceptor import Tokens, hooked_apply
from mistjax.models.config import FastConfig
from mistjax.models.draws import categorical
from mistjax.models.fast_language import ActionGrammar
from mistjax.models.gemma import KVCache
from mistjax.models.observation import Observation
from mistjax.models.pi0 import PrefixModel, example_observation
from mistjax.models.sampling import Prefix
from mistjax.models.stacks import token_layouts
from mistjax.models.tokenizers import EOS, PAD


class Pi0Fast(PrefixModel):
    """The model. Apply its methods with `model.apply(variables, ..., method=Pi0Fast.extend)`."""

    config: FastConfig

    def __call__(self, obs: Observation):
        """Touches every parameter; what `init` calls. Returns logits of all positions."""
        return self.decode(self.prefill(obs)[2])

    def extend(
        self,
        cache: KVCache,
        valid: Bool[Array, "b s"],
        token: Int[Array, " b"],
        position: Int[Array, " b"],
    ) -> tuple[Float[Array, "b v"], KVCache]:
        """Reads one more token: (logits of the next [B,V], its keys and values [L,B,1,K,h])."""
        x = self.embed_tokens(token[:, None]) * self.config.vlm.width**0.5
        mask = jnp.concatenate([valid, jnp.ones((valid.shape[0], 1), bool)], axis=1)[:, None]
        (hidden,), (k, v) = self.run_llm([x], position[:, None], mask, [None], cache)
        return self.decode(hidden[:, 0]).astype(jnp.float32), (k[:, :, -1:], v[:, :, -1:])


@flax.struct.dataclass
class Decoding:
    """Where the writing of an action stands.

    Attributes:
        logits: of the next token.
        cache: room for the prefix and every decoded token.
        valid: which of its entries hold something.
        length: real tokens of the prefix.
    """

    logits: Float[Array, "b v"]
    cache: KVCache
    valid: Bool[Array, "b s"]
    length: Int[Array, " b"]


@flax.struct.dataclass
class Written:
    """A decoded action chunk.

    Attributes:
        tokens: ids, PAD after an element's EOS.
        log_probs: of each token under the model at temperature 1; 0 after an element's EOS.
        entropies: of the distribution that each token was chosen from, in nats; 0 after an
            element's EOS.
        taps: `action` taps with the decoded token as leading axis; 0 from an element's EOS on.
    """

    tokens: Int[Array, "b s"]
    log_probs: Float[Array, "b s"]
    entropies: Float[Array, "b s"]
    taps: dict[str, Array]


def start(model: Pi0Fast, variables, prefix: Prefix) -> Decoding:
    """The logits of the first token, and a cache with room for `max_decoding_steps` more."""
    steps, (b, length) = model.config.max_decoding_steps, prefix.valid.shape
    last = length - 1 - jnp.argmax(prefix.valid[:, ::-1], axis=1)
    hidden = jnp.take_along_axis(prefix.hidden, last[:, None, None], axis=1)[:, 0]
    room = ((0, 0), (0, 0), (0, steps), (0, 0), (0, 0))
    logits: Any = model.apply(variables, hidden, method="decode")
    return Decoding(
        logits.astype(jnp.float32),
        jax.tree.map(lambda leaf: jnp.pad(leaf, room), prefix.cache),
        jnp.concatenate([prefix.valid, jnp.zeros((b, steps), bool)], axis=1),
        jnp.sum(prefix.valid, axis=1),
    )


def decode_step(
    model: Pi0Fast,
    variables,
    state: Decoding,
    token: Int[Array, " b"],
    step: Array | int,
    hooks: Hooks = Hooks(),
) -> tuple[Decoding, dict[str, Array]]:
    """Feeds the token of one step; taps and edits of the `action` stack."""
    config = model.config
    layout = token_layouts(config)["action"]
    (logits, own), found = hooked_apply(
        model,
        variables,
        state.cache,
        state.valid,
        token,
        state.length + step + config.decoding_gap,
        method=Pi0Fast.extend,
        stacks=model.stacks(),
        tokens={"action": Tokens(layout, jnp.ones((token.shape[0], 1), bool))},
        taps=hooks.taps,
        edits=hooks.edits,
        step=step,
    )
    slot = config.prefix_len + step
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
    cache = jax.tree.map(lambda room, new: write(room, new.astype(room.dtype)), state.cache, own)
    valid = state.valid.at[:, slot].set(True)
    return Decoding(logits, cache, valid, state.length), found


def write(
    model: Pi0Fast,
    variables,
    prefix: Prefix,
    keys: Key[Array, " b"],
    hooks: Hooks = Hooks(),
    *,
    temperature: Float[Array, ""] | float = 0.0,
    grammar: ActionGrammar | None = None,
    given: Int[Array, "b t"] | None = None,
) -> Written:
    """Decodes until every element has written EOS, at most `max_decoding_steps` tokens.

    Steps after the last EOS are skipped, not run. Differentiable (a scan, not a while loop).

    Args:
        model, variables: the model.
        prefix: what `sampling.prefill` returned.
        keys: one PRNG key per batch element [B].
        hooks: of the `action` stack, at every step.
        temperature: 0 is greedy.
        grammar: which tokens may follow; None allows every token.
        given: tokens to write in place of the model's own, which are thereby scored.
    """
    hooks.check_steps(model.config.max_decoding_steps)

    def pick(logits, place, step):
        if grammar is not None:
            logits = jnp.where(grammar.allowed(place), logits, -jnp.inf)
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
        hot = jax.vmap(categorical)(folded, logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, hot, jnp.argmax(logits, axis=-1)).astype(jnp.int32)

    def feed(state, token, step):
        return decode_step(model, variables, state, token, step, hooks)

    def body(carry, step):
        state, place, done = carry
        own = pick(state.logits, place, step) if given is None else given[:, step]
        token = jnp.where(done, PAD, own)
        if grammar is not None:
            place = grammar.after(place, token)
        every = jax.nn.log_softmax(state.logits)
        chosen = jnp.take_along_axis(every, token[:, None], axis=1)[:, 0]
        said = jnp.where(done, 0, chosen), jnp.where(done, 0, -jnp.sum(jnp.exp(every) * every, 1))
        done = done | (token == EOS)
        shapes = jax.eval_shape(feed, state, token, step)[1]
        skip = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        state, found = jax.lax.cond(
            jnp.all(done), lambda: (state, skip), lambda: feed(state, token, step)
        )
        found = jax.tree.map(lambda x: jnp.where(_elements(done, x), 0, x), found)
        return (state, place, done), (token, *said, found)

    batch = prefix.valid.shape[0]
    _, (tokens, log_probs, entropies, found) = jax.lax.scan(
        body,
        (start(model, variables, prefix), jnp.zeros(batch, int), jnp.zeros(batch, bool)),
        jnp.arange(model.config.max_decoding_steps),
    )
    return Written(tokens.T, log_probs.T, entropies.T, found)


def _elements(mask: Bool[Array, " b"], like: Array) -> Array:
    """The mask of batch elements, shaped to broadcast with a tap [L,B,...]."""
    return mask.reshape(1, -1, *(1,) * (like.ndim - 2))


def next_token_loss(
    model: Pi0Fast, variables, obs: Observation, continuation: Int[Array, "b c"]
) -> Float[Array, " b"]:
    """Cross entropy of the written action given the prompt, mean over its tokens (0 = padding).

    The continuation is read causally, the prefix in both directions.
    """
    out: Any = model.apply(variables, obs, continuation, method=Pi0Fast.prefill)
    _, valid, hidden = out
    return continuation_loss(model, variables, valid, hidden, continuation)


def continuation_loss(
    model: Pi0Fast,
    variables,
    valid: Bool[Array, "b p"],
    hidden: Float[Array, "b t d"],
    continuation: Int[Array, "b c"],
) -> Float[Array, " b"]:
    """`next_token_loss` from what `prefill` returned for the prefix and the continuation."""
    length = valid.shape[1]
    last = length - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    first = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    states = jnp.concatenate([first, hidden[:, length:-1]], axis=1)
    logits: Any = model.apply(variables, states, method="decode")
    real = (continuation != PAD).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), continuation)
    return jnp.sum(loss * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


@functools.partial(jax.jit, static_argnames="config")
def init(config: FastConfig, key: PRNGKeyArray) -> Any:
    """Random variables `{"params": tree}` for a configuration."""
    return Pi0Fast(config).init(key, example_observation(config))
