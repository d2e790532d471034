"""Prompts to token ids: SentencePiece with openpi's prompt formats.

The tokenizer is a file (PaliGemma's `paligemma_tokenizer.model` for the published checkpoints, a
small word-level one for policies trained here). Ids of both: pad 0, end 1, begin 2, unknown 3.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import SupportsIndex, SupportsInt

import numpy as np
import sentencepiece
from jaxtyping import Bool, Float, Int

from mistjax.untrusted import read_bytes, reading

PAD, EOS, BOS, UNKNOWN = 0, 1, 2, 3
STATE_BINS = 256

PaddedTokens = tuple[Int[np.ndarray, " l"], Bool[np.ndarray, " l"]]


def clean_prompt(prompt: str) -> str:
    """Strips the prompt and turns underscores and newlines into spaces."""
    return prompt.strip().replace("_", " ").replace("\n", " ")


def discretize_state(state: Float[np.ndarray, " s"]) -> Int[np.ndarray, " s"]:
    """The bin 0..255 of each normalised state in [-1, 1]; below -1 gives -1, as in openpi.

    Of numbers only: NaN has no bin, and `written_state` refuses it.
    """
    edges = np.linspace(-1, 1, STATE_BINS + 1)[:-1]
    return np.digitize(state, bins=edges) - 1


def written_state(state: Float[np.ndarray, " s"]) -> str:
    """The bins of a normalised state, as a prompt spells them; ValueError for NaN and Inf."""
    if not np.isfinite(state).all():
        wrong = [f"{i}: {state[i]}" for i in np.flatnonzero(~np.isfinite(state))]
        raise ValueError(
            f"the state has no bins in dimension {', '.join(wrong)}: expected numbers."
        )
    return " ".join(map(str, discretize_state(state)))


def state_prompt(prompt: str) -> str:
    """How a prompt begins that the state is written into."""
    return f"Task: {clean_prompt(prompt)}, State:"


PI05_TAIL, FAST_TAIL = ";\nAction: ", ";\n"
"""How it ends."""


@dataclasses.dataclass(frozen=True)
class PromptTokenizer:
    """A SentencePiece model and the length that prompts are padded to (pi0: 48, pi0.5: 200).

    `serialized` is the content of the model file, so that a tokenizer can be saved and
    fingerprinted with its policy.
    """

    serialized: bytes = dataclasses.field(repr=False)
    max_tokens: int

    def __post_init__(self):
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}: a prompt needs at least one.")
        try:
            known = bool(self.serialized) and self.vocab_size > UNKNOWN
        except RuntimeError:
            known = False
        if not known:
            raise ValueError(
                f"{len(self.serialized)} bytes that are not a SentencePiece model: expected the "
                "content of a file like paligemma_tokenizer.model."
            )

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.serialized)

    @classmethod
    def from_file(cls, path: str | Path, max_tokens: int) -> PromptTokenizer:
        """Reads a `.model` file; ValueError names one that is something else."""
        serialized = read_bytes(path)
        with reading(path, "a SentencePiece model"):
            return cls(serialized, max_tokens)

    @property
    def vocab_size(self) -> int:
        """Pieces of the file; the model's embedding may have more rows."""
        return self._processor.vocab_size()

    @property
    def special(self) -> tuple[int, int, int, int]:
        """Ids of pad, end, begin and unknown; -1 for one that the file lacks."""
        p = self._processor
        return p.pad_id(), p.eos_id(), p.bos_id(), p.unk_id()

    def encode(self, text: str) -> list[int]:
        """Token ids of the text as it is: not cleaned, no begin, no padding."""
        return self._processor.encode(text)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Text of token ids; control tokens (pad, begin, end) have none."""
        return self._processor.decode([int(i) for i in ids])

    def id_to_piece(self, index: SupportsIndex) -> str:
        """The vocabulary entry, with U+2581 where it begins a word: `▁stone`.

        Raises:
            ValueError: the id is not in the vocabulary.
        """
        index = operator.index(index)
        if not 0 <= index < self.vocab_size:
            raise ValueError(
                f"token id {index}: the vocabulary has ids 0 to {self.vocab_size - 1}."
            )
        return self._processor.id_to_piece(index)

    def piece_to_id(self, piece: str) -> int:
        """The inverse of `id_to_piece`; `UNKNOWN` for a piece that is not in the vocabulary."""
        return self._processor.piece_to_id(piece)

    def encode_pi0(self, prompt: str) -> PaddedTokens:
        """pi0's prompt (and pi0.5's without a discrete state): begin, text, newline.

        The newline is the first token of the answer in PaliGemma's training and is encoded apart,
        so that no piece can merge with it.

        Returns:
            Token ids [L] and their validity [L], L = `max_tokens`.

        Raises:
            ValueError: the prompt needs more than `max_tokens` tokens.
        """
        return self.pad([BOS, *self.encode(clean_prompt(prompt)), *self.encode("\n")])

    def encode_pi05(self, prompt: str, state: Float[np.ndarray, " s"]) -> PaddedTokens:
        """pi0.5's prompt with the normalised, unpadded state written out as bins.

        Returns:
            Token ids [L] and their validity [L], L = `max_tokens`.

        Raises:
            ValueError: prompt and state need more than `max_tokens` tokens, or the state is not
                finite.
        """
        text = f"{state_prompt(prompt)} {written_state(state)}{PI05_TAIL}"
        return self.pad([BOS, *self.encode(text)])

    def pad(self, ids: Sequence[int]) -> PaddedTokens:
        """Pads token ids on the right to `max_tokens`; ValueError when there are more."""
        if len(ids) > self.max_tokens:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, the policy takes {self.max_tokens}: shorten it "
                f"(it begins with {self.decode(ids[:12])!r})."
            )
        tokens = np.full(self.max_tokens, PAD, np.int32)
        tokens[: len(ids)] = ids
        return tokens, np.arange(self.max_tokens) < len(ids)


def train_word_tokenizer(sentences: Iterable[str], words: Iterable[str], path: str | Path) -> None:
    """Writes a SentencePiece model with one piece per word, for policies with a small language.

    Every word of `sentences` and `words`, and the newline, becomes a piece; anything else is
    `UNKNOWN`. Words are split at spaces only, so punctuation belongs to its word. pi0.5's format
    with a written-out state needs sub-word pieces and does not fit such a model.

    Args:
        sentences: training text.
        words: words to include whether or not they occur in a sentence.
        path: the `.model` file to write.

    Raises:
        ValueError: no words at all.
    """
    lines = [*sentences, " ".join(words)]
    vocabulary = {word for line in lines for word in line.split()}
    if not vocabulary:
        raise ValueError("sentences and words hold no word: a tokenizer needs at least one.")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for line in lines if line.strip()),
        model_writer=model,
        model_type="word",
        character_coverage=1.0,  # or words with a rare letter are dropped
        vocab_size=len(vocabulary) + 5,  # and pad, end, begin, unknown, newline
        pad_id=PAD,
        eos_id=EOS,
        bos_id=BOS,
        unk_id=UNKNOWN,
        # The default rule would turn the newline into a space.
        normalization_rule_name="identity",
        # A word-level model looks words up with their leading space.
        user_defined_symbols=["▁\n"],
        minloglevel=1,
    )
    Path(path).write_bytes(model.getvalue())
