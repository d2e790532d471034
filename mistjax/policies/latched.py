"""`LatchedPrompt`: an episode keeps the instruction that it began with.

This is preparation of an input, not a remedy: it needs no monitor and decides nothing. Where the
instruction does not change in mid-episode, the actions are bit for bit those of the policy inside;
so it costs nothing, and spares the monitors behind it a fault that they would have to name. It is
for policies that are told once what to do, not for one that is corrected while it acts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import Briefed, erase_state, with_words


@flax.struct.dataclass
class LatchedState:
    """Of each batch element's episode: the policy's own state, and the first prompt it had."""

    policy: Any
    tokens: Int[Array, "b l"]
    valid: Bool[Array, "b l"]
    begun: Bool[Array, " b"]


@flax.struct.dataclass
class LatchedPrompt(Briefed):
    """See the module.

    Attributes:
        policy: what acts. Of a prompt that holds the state too, the words are kept.
        length: tokens of a prompt, padding included.
    """

    policy: Policy
    length: int = flax.struct.field(pytree_node=False)

    @classmethod
    def around(cls, policy: Policy, bare: Policy) -> Policy:
        """The policy with its prompt kept.

        Args:
            policy: what acts, monitored or not.
            bare: the policy inside all of its wrappers.
        """
        return cls(policy, bare.spec.prompt_length)

    def initial_state(self, batch: int) -> LatchedState:
        state, words = self.policy.initial_state(batch), jnp.zeros((batch, self.length), jnp.int32)
        return LatchedState(state, words, words > 0, jnp.zeros(batch, bool))

    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Any = None,
    ) -> Sample:
        """See `Policy.sample`; `state` is `initial_state` or the last sample's."""
        state = self.initial_state(obs.batch_size) if isinstance(state, tuple) else state
        now, kept = erase_state(self.policy, obs), state.begun[:, None]
        tokens = jnp.where(kept, state.tokens, now.tokenized_prompt)
        valid = jnp.where(kept, state.valid, now.tokenized_prompt_mask)
        held = dataclasses.replace(now, tokenized_prompt=tokens, tokenized_prompt_mask=valid)
        if now is not obs:
            other = jnp.any(
                (tokens != now.tokenized_prompt) | (valid != now.tokenized_prompt_mask), 1
            )
            held = with_words(self.policy, obs, held, other)
        obs = held
        sample = self.policy.sample(
            obs, key, state=state.policy, edits=edits, taps=taps, prefix=prefix
        )
        begun = jnp.ones_like(state.begun)
        return dataclasses.replace(sample, state=LatchedState(sample.state, tokens, valid, begun))
