"""How a network's prefix becomes actions: token by token (OpenVLA) or all at once (OpenVLA-OFT).

A decoder has four parts. `see` is what the towers make of the pictures, `read` what an observation
costs whatever is decoded from it, `act` turns that into normalised actions, and `replay` does both
in one differentiable pass that takes the choices of `act` as given. `read_stacks` are the stacks
whose taps and edits belong to `read`; an inference has `steps` decoding steps of `width` tokens and
gives `horizon` actions; `extra` tokens lie between the patches and the prompt.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interop.openvla import generation, oft
from interop.openvla.generation import Cached, Embedded, Inputs
from interop.openvla.hooks import Hooks
from interop.openvla.model import OpenVLA

JAX_DTYPES = {torch.float32: jnp.float32, torch.bfloat16: jnp.bfloat16, torch.float16: jnp.float16}

Report = dict[str, Tensor]
Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDecoder:
    """One token for each number of one action; greedy. What was chosen by logits that are no
    numbers is NaN.

    `replay` returns the mean of the action bins under their probabilities in place of the greedy
    bin, which has no gradient.

    Attributes:
        model: the network.
        steps: numbers of an action.
    """

    model: OpenVLA
    steps: int
    read_stacks: ClassVar[tuple[str, ...]] = ("vision", "dino", "vlm")
    horizon: ClassVar[int] = 1
    width: ClassVar[int] = 1
    extra: ClassVar[int] = 0
    extra_modules: ClassVar[tuple[nn.Module, ...]] = ()

    def see(self, inputs: Inputs, hooks: Hooks) -> Float[Tensor, "b p d"]:
        return generation.see(self.model, inputs, hooks)[0]

    def read(self, inputs: Inputs, hooks: Hooks) -> dict[str, Tensor]:
        embedded = generation.embed(self.model, inputs, hooks)
        return vars(generation.prefill(self.model, embedded, hooks))

    def act(self, prefix: dict[str, Tensor], hooks: Hooks) -> tuple[Float[Tensor, "b 1 a"], Report]:
        decoded = generation.decode(self.model, Cached(**prefix), self.steps, hooks)
        chosen = generation.greedy_actions(self.model, decoded.tokens)
        report = generation.token_report(self.model, decoded.tokens, decoded.logits)
        chosen = chosen.where(report["token_log_prob"].isfinite(), torch.nan)
        return chosen[:, None], report

    def replay(
        self, inputs: Inputs, report: Report, hooks: Hooks
    ) -> tuple[Float[Tensor, "b 1 a"], Report]:
        embedded = generation.embed(self.model, inputs, hooks)
        tokens = report["tokens"].long()
        logits = generation.follow(self.model, embedded, tokens, hooks)
        mean = generation.expected_actions(self.model, logits)
        return mean[:, None], generation.token_report(self.model, tokens, logits)

    def read_shapes(self, batch: int, length: int) -> Shapes:
        text = self.model.config.text
        size = (text.num_hidden_layers, batch, text.num_key_value_heads, length, text.head_dim)
        cache = jax.ShapeDtypeStruct(size, JAX_DTYPES[self.model.dtype])
        return {
            "keys": cache,
            "values": cache,
            "valid": jax.ShapeDtypeStruct((batch, length), jnp.bool_),
        }

    def report_shapes(self, batch: int) -> Shapes:
        numbers = jax.ShapeDtypeStruct((batch, self.steps), jnp.float32)
        return {
            "tokens": jax.ShapeDtypeStruct((batch, self.steps), jnp.int32),
            "token_log_prob": numbers,
            "token_entropy": numbers,
            "decode_ok": jax.ShapeDtypeStruct((batch,), jnp.bool_),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkDecoder:
    """A chunk of actions in one pass with attention in both directions.

    The prompt sees the placeholders, so the Llama's prefix belongs to `act`; only the towers' work
    can be shared.

    Attributes:
        model: the network.
        parts: head and projector.
    """

    model: OpenVLA
    parts: oft.OFTParts
    read_stacks: ClassVar[tuple[str, ...]] = ("vision", "dino")
    steps: ClassVar[int] = 1

    @property
    def horizon(self) -> int:
        return self.parts.chunk

    @property
    def width(self) -> int:
        return self.parts.numbers

    @property
    def extra(self) -> int:
        return int(self.parts.proprio is not None)

    @property
    def extra_modules(self) -> tuple[nn.Module, ...]:
        return tuple(m for m in (self.parts.head, self.parts.proprio) if m is not None)

    def see(self, inputs: Inputs, hooks: Hooks) -> Float[Tensor, "b p d"]:
        words = oft.instruction(self.model, inputs)
        return generation.see(self.model, inputs, hooks, words)[0]

    def read(self, inputs: Inputs, hooks: Hooks) -> dict[str, Tensor]:
        return vars(oft.embed(self.model, self.parts, inputs, hooks))

    def act(self, prefix: dict[str, Tensor], hooks: Hooks) -> tuple[Float[Tensor, "b c a"], Report]:
        embedded = Embedded(**prefix)
        hidden = oft.hidden_states(self.model, self.parts, embedded, hooks)
        return self.parts.read(hidden, embedded), {}

    def replay(
        self, inputs: Inputs, report: Report, hooks: Hooks
    ) -> tuple[Float[Tensor, "b c a"], Report]:
        return self.act(self.read(inputs, hooks), hooks)

    def read_shapes(self, batch: int, length: int) -> Shapes:
        size = (batch, length, self.model.config.text.hidden_size)
        return {
            "embeds": jax.ShapeDtypeStruct(size, JAX_DTYPES[self.model.dtype]),
            "valid": jax.ShapeDtypeStruct((batch, length), jnp.bool_),
        }

    def report_shapes(self, batch: int) -> Shapes:
        return {}


Decoder = TokenDecoder | ChunkDecoder
