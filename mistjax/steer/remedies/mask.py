"""A mask: the policy does without the input.

It helps a policy that was trained without inputs now and then, and harms others. Nothing stands in
for the input, so nothing says when the sensor is sound again: such a repair ends with its budget.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mistjax.steer.remedies.remedy import Proposal, Seen


@flax.struct.dataclass
class Mask:
    """See the module; of a camera, the state or the text."""

    def blank(self, batch: int) -> tuple[()]:
        return ()

    def note(self, seen: Seen, name: str) -> tuple[()]:
        return ()

    def advance(self, note: tuple[()], seen: Seen) -> tuple[()]:
        return ()

    def propose(self, note: tuple[()], seen: Seen, name: str) -> Proposal:
        obs, batch = seen.obs, seen.obs.batch_size
        no: Bool[Array, " b"] = jnp.zeros(batch, bool)
        if name in obs.image_masks:
            masked = dataclasses.replace(obs, image_masks={**obs.image_masks, name: no})
        elif name == "text":
            words = jnp.zeros_like(jnp.asarray(obs.tokenized_prompt_mask))
            masked = dataclasses.replace(obs, tokenized_prompt_mask=words)
        else:
            masked = dataclasses.replace(obs, state_mask=no)
        return Proposal(masked, ~no, jnp.full(batch, jnp.inf))
