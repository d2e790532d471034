"""The language side of a policy: its tokenizer, embedded prompts, and directions read as words."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from interop.bridge import call_torch
from interop.openvla.decoders import Decoder
from interop.openvla.model import OpenVLA
from interop.openvla.reader import Reader
from mistjax.models.observation import Observation
from mistjax.models.tokenizers import PromptTokenizer


class Words:
    """Mixed into `OpenVLAPolicy`, whose fields these are."""

    model: OpenVLA
    decoder: Decoder
    reader: Reader

    @property
    def tokenizer(self) -> PromptTokenizer:
        return self.reader.tokenizer

    @property
    def num_parameters(self) -> int:
        modules = (self.model, *self.decoder.extra_modules)
        return sum(value.numel() for module in modules for value in module.parameters())

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels (height, width) of one vision patch."""
        size = self.model.config.towers[0].patch_size
        return size, size

    def embed_prompt(self, obs: Observation) -> Observation:
        """The same observation with `prompt_embedding` filled in, so that words have gradients."""
        width = self.model.config.text.hidden_size
        shape = jax.ShapeDtypeStruct((*obs.tokenized_prompt.shape, width), jnp.float32)

        def run(ids):
            return self.model.embed_tokens(ids.long().to(self.model.device)).float()

        return dataclasses.replace(
            obs, prompt_embedding=call_torch(run, shape, obs.tokenized_prompt)
        )

    def decode_direction(self, direction: Float[Array, "*n d"]) -> Float[Array, "*n v"]:
        """Logits over the vocabulary of directions in the Llama's residual stream, unscaled."""
        head = self.model.language_model.lm_head.weight
        shape = jax.ShapeDtypeStruct((*direction.shape[:-1], head.shape[0]), jnp.float32)

        def run(direction):
            return (direction.to(head) @ head.T).float()

        return call_torch(run, shape, direction)
