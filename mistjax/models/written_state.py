"""The robot's state written into a prompt inside a compiled program, token for token as
`PromptTokenizer` writes it on the host (pi0.5, pi0-FAST).

A number's tokens do not depend on the others beside it, so a table of the 257 bins holds them all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mistjax.models.tokenizers import BOS, PAD, STATE_BINS, PromptTokenizer

BINS = range(-1, STATE_BINS)


@flax.struct.dataclass
class StateWriter:
    """The tokens of every bin, padded on the right.

    Attributes:
        number: tokens of a bin that another one follows.
        last: tokens of a bin at the end, and of the rest of the prompt.
        number_length, last_length: how many they are.
    """

    number: Int[Array | np.ndarray, "bins n"]
    number_length: Int[Array | np.ndarray, " bins"]
    last: Int[Array | np.ndarray, "bins m"]
    last_length: Int[Array | np.ndarray, " bins"]

    @classmethod
    @functools.lru_cache
    def of(cls, tokenizer: PromptTokenizer, tail: str) -> StateWriter:
        """The tables of a tokenizer, for prompts of the form `Task: ..., State: 12 200<tail>`.

        Raises:
            ValueError: the tokenizer joins a number with what is beside it.
        """
        start = tokenizer.encode(f"{_TASK} 0")
        rest = tokenizer.encode(f"{_TASK} 0 0{tail}")[len(start) :]
        numbers, lasts = [], []
        for n in BINS:
            text = tokenizer.encode(f"{_TASK} 0 {n} 0{tail}")
            numbers.append(text[len(start) : len(text) - len(rest)])
            lasts.append(tokenizer.encode(f"{_TASK} 0 {n}{tail}")[len(start) :])
            if text != [*start, *numbers[-1], *rest]:
                raise ValueError(
                    f"this tokenizer joins the number {n} with what is beside it: its prompts "
                    "cannot be written inside a compiled program. Use `run_episodes`."
                )
        return cls(*_padded(numbers), *_padded(lasts))

    def prefixes(
        self, tokenizer: PromptTokenizer, texts: Sequence[str], tail: str, numbers: int
    ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """The tokens before the first number, of texts that end with `State:`, and their validity.

        Raises:
            ValueError: with the longest numbers a prompt has more tokens than fit.
        """
        end = len(tokenizer.encode(f"{_TASK} 0{tail}")) - len(tokenizer.encode(_TASK))
        longest = (numbers - 1) * int(self.number_length.max()) + int(self.last_length.max())
        rows = []
        for text in texts:
            ids = [BOS, *tokenizer.encode(f"{text} 0{tail}")]
            ids = ids[: len(ids) - end]
            if len(ids) + longest > tokenizer.max_tokens:
                raise ValueError(
                    f"the prompt {text!r} has up to {len(ids) + longest} tokens with the state, "
                    f"the policy takes {tokenizer.max_tokens}: shorten it."
                )
            rows.append(tokenizer.pad(ids))
        tokens, masks = zip(*rows, strict=True)
        return np.stack(tokens), np.stack(masks)

    def write(
        self,
        prefix: tuple[Int[Array, "b l"], Bool[Array, "b l"]],
        state: Float[Array, "b s"],
    ) -> tuple[Int[Array, "b l"], Bool[Array, "b l"]]:
        """Token ids and validity of whole prompts: of `prefixes`, then the normalised state."""
        number, last = jnp.asarray(self.number), jnp.asarray(self.last)
        at = _bins(state)

        def one(ids, mask, at, lengths):
            starts = mask.sum() + jnp.append(0, jnp.cumsum(lengths)[:-1])
            parts = [*(number[b] for b in at[:-1]), last[at[-1]]]
            for start, part, length in zip(starts, parts, lengths, strict=True):
                places = jnp.arange(part.shape[0])
                there = jnp.where(places < length, start + places, ids.shape[0])
                ids = ids.at[there].set(part, mode="drop")
            return ids, jnp.arange(ids.shape[0]) < mask.sum() + lengths.sum()

        return jax.vmap(one)(*prefix, at, self._lengths(at))

    def erase(
        self,
        prompt: tuple[Int[Array, "b l"], Bool[Array, "b l"]],
        state: Float[Array, "b s"],
    ) -> tuple[Int[Array, "b l"], Bool[Array, "b l"]]:
        """The inverse of `write`: the prefixes of prompts that hold this state."""
        tokens, mask = prompt
        length = mask.sum(1) - self._lengths(_bins(state)).sum(1)
        kept = jnp.arange(tokens.shape[1])[None] < length[:, None]
        return jnp.where(kept, tokens, PAD), kept

    def _lengths(self, at: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """Tokens of each number."""
        number, last = jnp.asarray(self.number_length), jnp.asarray(self.last_length)
        return jnp.concatenate([number[at[:, :-1]], last[at[:, -1:]]], axis=1)


_TASK = "Task: x, State:"


def _bins(state: Float[Array, "b s"]) -> Int[Array, "b s"]:
    """Places in the tables; 0 is the bin -1."""
    edges = jnp.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return jnp.searchsorted(edges, state, side="right")


def _padded(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.full((len(rows), max(map(len, rows))), PAD, np.int32)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table, np.array([len(ids) for ids in rows], np.int32)
