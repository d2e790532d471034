"""What a policy saw at one inference, in numbers that fit into a bounded memory.

The vision tower's tokens come from a tap, everything else from the observation, so that nothing is
computed twice. Cost: one pass over the pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import Wrapper, erase_state

CELLS = 8
PATCHES = 4
TOKENS = Tap("vision.resid", (-1,), "image")
"""What the vision tower makes of every patch of every camera."""


@flax.struct.dataclass
class Reading:
    """Of each batch element (C cameras in the model's order).

    Attributes:
        tokens: the vision tower's output, averaged to at most 4 by 4 patches per camera.
        grid: mean colour in [-1, 1] of 8 by 8 cells.
        detail: log of the mean difference between neighbouring pixels, by cell.
        state: normalised state, padding included.
        prompt: token ids of the instruction, 0 where there is none.
    """

    tokens: Float[Any, "*b c n d"]
    grid: Float[Any, "*b c 8 8 3"]
    detail: Float[Any, "*b c 8 8"]
    state: Float[Any, "*b s"]
    prompt: Int[Any, "*b l"]

    @property
    def flat(self) -> Float[Any, "*b c t"]:
        """The tokens of each camera in one row."""
        return self.tokens.reshape(*self.tokens.shape[:-2], -1)


def read(obs: Observation, tokens: Float[Array, "1 b t d"]) -> Reading:
    """What was seen.

    Args:
        obs: the observation, without the state in its prompt (`policies.wrapper.erase_state`).
        tokens: value of the tap `TOKENS`.

    Raises:
        ValueError: a picture smaller than 8 pixels.
    """
    pictures = [jnp.asarray(picture) for picture in obs.images.values()]
    cells = [colour_and_detail(picture) for picture in pictures]
    rows = tokens.shape[1]
    return Reading(
        tokens=_coarse(tokens[0].reshape(rows, len(pictures), -1, tokens.shape[-1])),
        grid=jnp.stack([grid for grid, _ in cells], axis=1),
        detail=jnp.stack([detail for _, detail in cells], axis=1),
        state=jnp.asarray(obs.state, jnp.float32),
        prompt=jnp.where(obs.tokenized_prompt_mask, obs.tokenized_prompt, 0),
    )


def _coarse(tokens: Float[Array, "b c t d"]) -> Float[Array, "b c n d"]:
    """At most 4 by 4 patches; as they are where their number is not a multiple of that square."""
    b, c, t, d = tokens.shape
    side = math.isqrt(t)
    if side * side != t or side % PATCHES:
        return tokens
    block = side // PATCHES
    blocks = tokens.reshape(b, c, PATCHES, block, PATCHES, block, d)
    return blocks.mean((3, 5)).reshape(b, c, PATCHES**2, d)


def colour_and_detail(
    picture: Float[Array, "b h w 3"],
) -> tuple[Float[Array, "b 8 8 3"], Float[Array, "b 8 8"]]:
    """(mean colour, log of the mean difference between neighbours) of each cell."""
    b, h, w, _ = picture.shape
    if min(h, w) < CELLS:
        raise ValueError(f"pictures are {h} by {w} pixels: expected at least {CELLS}.")
    tall, wide = h // CELLS, w // CELLS
    picture = picture[:, : tall * CELLS, : wide * CELLS].astype(jnp.float32)
    blocks = picture.reshape(b, CELLS, tall, CELLS, wide, 3)
    down = jnp.abs(jnp.diff(blocks, axis=2)).mean((2, 4, 5)) if tall > 1 else 0.0
    along = jnp.abs(jnp.diff(blocks, axis=4)).mean((2, 4, 5)) if wide > 1 else 0.0
    return blocks.mean((2, 4)), jnp.log(down + along + 1e-3)


@dataclasses.dataclass(frozen=True)
class Reads(Wrapper):
    """A policy whose samples also say what it read, as `aux["read/<field>"]`, and what it commands,
    as `aux["read/command"]`: to fit detectors of its inputs to recorded runs. Its actions are the
    bare policy's.
    """

    policy: Policy

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
        """See `Policy.sample`."""
        every = tuple(dict.fromkeys((*taps, TOKENS)))
        sample = self.policy.sample(obs, key, state=state, edits=edits, taps=every, prefix=prefix)
        reading = read(erase_state(self.policy, obs), sample.taps[str(TOKENS)])
        values = {f"read/{f.name}": getattr(reading, f.name) for f in dataclasses.fields(reading)}
        spec = self.policy.spec
        values[COMMAND] = sample.actions[:, : spec.execute_steps, : spec.action_dim]
        return dataclasses.replace(sample, aux={**sample.aux, **values})


COMMAND = "read/command"
FIELDS = (*(f"read/{field.name}" for field in dataclasses.fields(Reading)), COMMAND)
