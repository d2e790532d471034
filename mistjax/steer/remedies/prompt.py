"""The last good prompt: an instruction does not change in the middle of an episode by itself."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mistjax.steer.remedies.remedy import Proposal, Seen


class Words(NamedTuple):
    """A tokenised prompt."""

    tokens: Int[Array, "b l"]
    valid: Bool[Array, "b l"]


@flax.struct.dataclass
class LastPrompt:
    """See the module. Its residual is 0 for the same prompt, and 2 for any other.

    Attributes:
        length: tokens of a prompt, padding included (static).
    """

    length: int = flax.struct.field(pytree_node=False)

    def blank(self, batch: int) -> Words:
        return Words(
            jnp.zeros((batch, self.length), jnp.int32), jnp.zeros((batch, self.length), bool)
        )

    def note(self, seen: Seen, name: str) -> Words:
        obs = seen.obs
        return Words(jnp.asarray(obs.tokenized_prompt), jnp.asarray(obs.tokenized_prompt_mask))

    def advance(self, note: Words, seen: Seen) -> Words:
        return note

    def propose(self, note: Words, seen: Seen, name: str) -> Proposal:
        now = self.note(seen, name)
        other = jnp.any((now.tokens != note.tokens) | (now.valid != note.valid), axis=1)
        obs = dataclasses.replace(
            seen.obs, tokenized_prompt=note.tokens, tokenized_prompt_mask=note.valid
        )
        return Proposal(obs, jnp.ones_like(other), 2.0 * other.astype(jnp.float32))
