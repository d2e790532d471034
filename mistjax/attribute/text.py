"""Words: which tokens make one up, what a word contributes, what happens without it.

Leave-one-out takes a word out of the prompt (its tokens are masked and the gap closes), where
occlusion puts the baseline in its place.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mistjax.attribute.batching import compiled, in_chunks
from mistjax.attribute.readouts import Readout
from mistjax.attribute.sharing import PICTURES, Runs
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Pieces, Policy

_SPACE = "▁"


class Word(NamedTuple):
    """A word and its tokens [start, stop)."""

    text: str
    start: int
    stop: int


def words_of(
    tokenizer: Pieces, tokens: Shaped[np.ndarray, " l"], mask: Shaped[np.ndarray, " l"]
) -> list[Word]:
    """The words of one prompt; control tokens and newlines are not words, and end the word
    before.
    """
    words: list[Word] = []
    joins = False
    for i in np.flatnonzero(mask):
        piece = tokenizer.id_to_piece(int(tokens[i]))
        text = piece.removeprefix(_SPACE)
        if not text.strip() or (piece.startswith("<") and piece.endswith(">")):
            joins = False
        elif joins and not piece.startswith(_SPACE):
            words[-1] = Word(words[-1].text + text, words[-1].start, int(i) + 1)
        else:
            words.append(Word(text, int(i), int(i) + 1))
            joins = True
    return words


def word_spans(
    tokenizer: Pieces, obs: Observation
) -> tuple[list[list[Word]], Bool[np.ndarray, "n b l"]]:
    """The words of every batch element, and their tokens as masks; n is the largest number of
    words, and the spans that another element lacks are empty.
    """
    tokens, masks = np.asarray(obs.tokenized_prompt), np.asarray(obs.tokenized_prompt_mask)
    rows = [words_of(tokenizer, t, m) for t, m in zip(tokens, masks, strict=True)]
    spans = np.zeros((max(map(len, rows)), *tokens.shape), bool)
    for b, words in enumerate(rows):
        for n, word in enumerate(words):
            spans[n, b, word.start : word.stop] = True
    return rows, spans


@compiled
def leave_one_out(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    spans: Bool[Array | np.ndarray, "n b l"] | Int[Array | np.ndarray, "n b l"],
    *,
    chunk: int = 8,
) -> Float[Array, "n b"]:
    """Readout minus the readout without each span. Cost: n + 1 inferences of the batch.

    Args:
        policy: the policy.
        obs: a batch.
        key: of the sampling noise, the same in every run.
        readout: what is measured.
        spans: the tokens to take out, for example of `word_spans`.
        chunk: spans in memory at a time, each the whole batch.
    """
    spans = jnp.asarray(spans, bool)
    spans = jnp.concatenate([spans, jnp.zeros_like(spans[:1])])
    runs = Runs.sharing(PICTURES, policy, obs, key, readout)

    def without(span):
        kept = jnp.asarray(obs.tokenized_prompt_mask) & ~span
        return runs(dataclasses.replace(runs.obs, tokenized_prompt_mask=kept))

    values = in_chunks(without, spans, chunk)
    return values[-1:] - values[:-1]
