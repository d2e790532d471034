"""The language side of a policy: its tokenizer, embedded prompts, and directions read as words."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from interop.arrays import to_jax
from interop.bridge import call_torch
from interop.openvla import actions
from interop.openvla.decoders import Decoder
from interop.openvla.model import OpenVLA
from interop.openvla.reader import Reader
from mistjax.models.observation import Observation
from mistjax.models.tokenizers import PromptTokenizer
from mistjax.policies.protocol import PolicySpec
from mistjax.policies.value_vectors import ValueVectors


class Words:
    """Mixed into `OpenVLAPolicy`, whose fields these are."""

    model: OpenVLA
    decoder: Decoder
    reader: Reader
    spec: PolicySpec

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

    def value_vectors(self, stack: str = "vlm") -> ValueVectors:
        """See `LanguagePolicy.value_vectors`; of the Llama, which reads and decodes with the same
        weights. Actions are words of its vocabulary: ids of action bins are named by their
        normalised action (`action[+0.51]`) in place of the rare piece whose id they took. Costs a
        copy of its down projections.

        Raises:
            ValueError: a stack without a vocabulary.
        """
        if stack not in ("vlm", "action"):
            raise ValueError(f"stack {stack!r} has no vocabulary: expected 'vlm' or 'action'.")
        llama, config = self.model.language_model, self.model.config
        known, first = self.tokenizer.vocab_size, config.action_vocab - config.n_action_bins
        bins = actions.decode(np.arange(first, config.action_vocab), config.action_vocab)
        names = [self.tokenizer.id_to_piece(i) if i < known else f"id[{i}]" for i in range(first)]
        names += [f"action[{value:+.2f}]" for value in bins]
        return ValueVectors(
            stack,
            self.spec.fingerprint,
            to_jax(self.model.value_vectors()),
            to_jax(llama.model.norm.weight),
            to_jax(llama.lm_head.weight[: len(names)]),
            tuple(names),
            np.arange(len(names)) >= first,
        )
