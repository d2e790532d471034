"""Reading the prefix once and decoding action tokens from its cache.

The loop is ours: `transformers`' own generation hands models a cache object before the first step,
and code written for older versions then drops the whole prompt, images included, without a word.

A decoding step is one forward pass that ends in one token. Step 0 reads the empty token that every
answer begins with, step k the token of step k-1; so an action of seven tokens takes seven equal
steps after the prefix. Always greedy and always the full number of tokens: an early end-of-text
token is an invalid action and not the end.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from interop.openvla import actions
from interop.openvla.hooks import Call, Hooks
from interop.openvla.model import OpenVLA
from interop.taps import last_valid


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the network reads.

    Attributes:
        text: embedded prompt, BOS first, without the empty token; padding on the right.
        text_mask: which prompt tokens are real.
        pixel_values: six channels an image.
        image_mask: which images are present.
        state: normalised robot state; only OpenVLA-OFT reads it.
        patches: projected patches of all images, in place of what the towers make of them.
    """

    text: Float[Tensor, "b t d"]
    text_mask: Bool[Tensor, "b t"]
    pixel_values: Float[Tensor, "b c h w"]
    image_mask: Bool[Tensor, "b n"]
    state: Float[Tensor, "b s"]
    patches: Float[Tensor, "b p d"] | None = None


@dataclasses.dataclass(frozen=True)
class Embedded:
    """[BOS][patches][rest of the prompt] as embeddings, and which of them are real."""

    embeds: Float[Tensor, "b p d"]
    valid: Bool[Tensor, "b p"]

    @property
    def positions(self) -> Int[Tensor, "b p"]:
        at = torch.arange(self.valid.shape[1], device=self.valid.device)
        return at.expand(len(self.valid), -1)


def see(
    model: OpenVLA,
    inputs: Inputs,
    hooks: Hooks,
    instruction: Float[Tensor, "b d"] | None = None,
) -> tuple[Float[Tensor, "b p d"], Bool[Tensor, "b p"]]:
    """(projected patches, which of them are real). The towers run, once, unless the patches are
    given and nothing is read of the towers.

    Args:
        model: the network.
        inputs: what it reads.
        hooks: taps and edits.
        instruction: see `OpenVLA.embed_images`.
    """
    seen = inputs.image_mask.repeat_interleave(model.config.num_patches, dim=1)
    hooks.expect_images(seen)
    if inputs.patches is not None and not hooks.read_towers:
        return inputs.patches, seen
    patches = model.embed_images(inputs.pixel_values, instruction)
    return patches if inputs.patches is None else inputs.patches, seen


def embed(model: OpenVLA, inputs: Inputs, hooks: Hooks) -> Embedded:
    """Puts the patches after BOS."""
    patches, seen = see(model, inputs, hooks)
    return Embedded(*model.assemble(inputs.text, inputs.text_mask, patches, seen))


@dataclasses.dataclass(frozen=True)
class Cached:
    """The Llama's keys and values of a prefix, and which of its tokens are real."""

    keys: Float[Tensor, "l b n p h"]
    values: Float[Tensor, "l b n p h"]
    valid: Bool[Tensor, "b p"]


def prefill(model: OpenVLA, embedded: Embedded, hooks: Hooks) -> Cached:
    """One pass over the prefix."""
    cache = DynamicCache(config=model.language_model.config)
    hooks.expect(Call(embedded.valid.shape[1], range(0)), embedded.valid)
    model.hidden(embedded.embeds, embedded.valid, embedded.positions, cache)
    layers: list[Any] = cache.layers
    keys, values = zip(*((layer.keys, layer.values) for layer in layers), strict=True)
    return Cached(torch.stack(keys), torch.stack(values), embedded.valid)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Decoded tokens and the logits that chose them."""

    tokens: Int[Tensor, "b n"]
    logits: Float[Tensor, "b n v"]


def decode(model: OpenVLA, cached: Cached, num_tokens: int, hooks: Hooks) -> Decoded:
    """Greedy decoding; costs `num_tokens` passes over one token each."""
    cache = DynamicCache(config=model.language_model.config)
    for layer, (keys, values) in enumerate(zip(cached.keys, cached.values, strict=True)):
        cache.update(keys, values, layer)
    valid, position = cached.valid, last_valid(cached.valid)[:, None] + 1
    token = torch.full_like(position, model.config.empty_token)
    tokens, logits = [], []
    for step in range(num_tokens):
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
        hooks.expect(Call(0, range(step, step + 1)))
        hidden = model.hidden(model.embed_tokens(token), valid, position + step, cache)
        logits.append(model.language_model.lm_head(hidden[:, -1]))
        token = logits[-1].argmax(dim=-1, keepdim=True)
        tokens.append(token)
    return Decoded(torch.cat(tokens, dim=1), torch.stack(logits, dim=1))


def follow(
    model: OpenVLA, embedded: Embedded, tokens: Int[Tensor, "b n"], hooks: Hooks
) -> Float[Tensor, "b n v"]:
    """Logits of given tokens in one pass without a cache: what `decode` computes, differentiable.

    Cost: one pass over prefix and tokens, and its activations in memory while gradients are on.
    """
    count = tokens.shape[1]
    start = torch.full_like(tokens[:, :1], model.config.empty_token)
    answer = model.embed_tokens(torch.cat([start, tokens[:, :-1]], dim=1))
    steps = torch.arange(1, count + 1, device=tokens.device)
    hooks.expect(Call(embedded.valid.shape[1], range(count)), embedded.valid)
    hidden = model.hidden(
        torch.cat([embedded.embeds, answer], dim=1),
        torch.cat([embedded.valid, torch.ones_like(tokens, dtype=torch.bool)], dim=1),
        torch.cat([embedded.positions, last_valid(embedded.valid)[:, None] + steps], dim=1),
    )
    return model.language_model.lm_head(hidden[:, -count:])


def token_report(
    model: OpenVLA, tokens: Int[Tensor, "b n"], logits: Float[Tensor, "b n v"]
) -> dict[str, Tensor]:
    """What the decoded tokens say besides the action.

    Returns:
        `tokens` [B,N]; `token_log_prob` [B,N] of the likeliest action bin and `token_entropy` [B,N]
        in nats, both over the action bins alone; `decode_ok` [B], False where a token is no action.
    """
    config = model.config
    log_probs = bin_logits(model, logits).log_softmax(dim=-1)
    known = (tokens >= config.action_vocab - config.n_action_bins) & (tokens < config.action_vocab)
    return {
        "tokens": tokens.int(),
        "token_log_prob": log_probs.amax(dim=-1),
        "token_entropy": -(log_probs.exp() * log_probs).sum(dim=-1),
        "decode_ok": known.all(dim=-1),
    }


def bin_logits(model: OpenVLA, logits: Float[Tensor, "b n v"]) -> Float[Tensor, "b n k"]:
    """Logits of the action ids, in float32."""
    vocab, bins = model.config.action_vocab, model.config.n_action_bins
    return logits[..., vocab - bins : vocab].float()


def bin_values(model: OpenVLA) -> Float[Tensor, " k"]:
    """The normalised action that each id of `bin_logits` decodes to."""
    vocab, bins = model.config.action_vocab, model.config.n_action_bins
    ids = torch.arange(vocab - bins, vocab)
    return torch.tensor(
        actions.decode(ids.numpy(), vocab, bins), dtype=torch.float32, device=model.device
    )


def greedy_actions(model: OpenVLA, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Normalised actions; an id that is no action counts as the nearest bin."""
    vocab, bins = model.config.action_vocab, model.config.n_action_bins
    return bin_values(model)[(tokens - (vocab - bins)).clamp(0, bins - 1)]


def expected_actions(model: OpenVLA, logits: Float[Tensor, "b n v"]) -> Float[Tensor, "b n"]:
    """Mean of the bins under their probabilities: a differentiable stand-in for the greedy bin."""
    return bin_logits(model, logits).softmax(dim=-1) @ bin_values(model)
