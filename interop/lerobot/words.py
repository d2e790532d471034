"""The language side of a policy: its tokenizer, embedded prompts, and directions read as words."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from interop.arrays import to_jax
from interop.bridge import call_torch
from interop.lerobot.smolvla import Network
from mistjax.models.observation import Observation
from mistjax.policies.protocol import PolicySpec
from mistjax.policies.value_vectors import ValueVectors


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """A tokenizer of transformers under SentencePiece's names: `▁` begins a word."""

    tokenizer: Any

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @property
    def serialized(self) -> str:
        return self.tokenizer.backend_tokenizer.to_str()

    def id_to_piece(self, index: int) -> str:
        piece = self.tokenizer.convert_ids_to_tokens(index)
        return piece.replace("Ġ", "▁").replace("Ċ", "\n")  # GPT-2's names for space and newline


class Words:
    """Mixed into `LeRobotPolicy`, whose fields these are."""

    policy: Any
    network: Network
    spec: PolicySpec

    @property
    def tokenizer(self) -> Pieces:
        return Pieces(self.policy.model.vlm_with_expert.processor.tokenizer)

    def embed_prompt(self, obs: Observation) -> Observation:
        """The same observation with `prompt_embedding` filled in, so that words have gradients."""
        width = self.network.stacks["vlm"].spec.width
        shape = jax.ShapeDtypeStruct((*obs.tokenized_prompt.shape, width), jnp.float32)
        table = self.network.embedding

        def run(ids):
            with torch.no_grad():
                return table(ids.long().to(next(table.parameters()).device)).float()

        return dataclasses.replace(
            obs, prompt_embedding=call_torch(run, shape, obs.tokenized_prompt)
        )

    def value_vectors(self, stack: str = "vlm") -> ValueVectors:
        """See `LanguagePolicy.value_vectors`. Of the VLM through its language head, which SmolVLA
        keeps but does not train; of the expert through the action projection, in the env's units.

        Raises:
            ValueError: a stack without names to read it by.
        """
        flow = self.policy.model
        two = flow.vlm_with_expert
        if stack == "vlm":
            norm, rows = two.get_vlm_model().text_model.norm, two.vlm.lm_head.weight
            names = [self.tokenizer.id_to_piece(i) for i in range(self.tokenizer.vocab_size)]
            names, rows = names[: len(rows)], rows[: len(names)]
        elif stack == "action":
            actions, unit = self.spec.action_names, torch.tensor(self.spec.action_scale)
            norm, kernel = two.lm_expert.norm, flow.action_out_proj.weight[: len(actions)]
            raised = -(kernel * unit.to(kernel)[:, None])  # the sampler subtracts the velocity
            rows = torch.cat([raised, -raised])
            names = [f"{sign}{name}" for sign in "+-" for name in actions]
        else:
            raise ValueError(f"stack {stack!r} has no names to read it by: use 'vlm' or 'action'.")
        blocks = self.network.stacks[stack].blocks
        vectors = torch.stack([block.mlp.down_proj.weight.T for block in blocks])  # pyright: ignore
        return ValueVectors(
            stack,
            self.spec.fingerprint,
            to_jax(vectors.float()),
            to_jax(norm.weight.float()),
            to_jax(rows.float()),
            tuple(names),
            np.full(len(names), stack == "action"),
        )
