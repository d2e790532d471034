"""pi0-FAST's language: the state in the prompt, action tokens as the model's last ids.

Source: FAST (arXiv 2501.09747); the formats are openpi's.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import sentencepiece
from jaxtyping import Array, Bool, Float, Int

from mistjax.models.fast_tokenizer import ActionTokenizer
from mistjax.models.tokenizers import (
    BOS,
    EOS,
    FAST_TAIL,
    PAD,
    STATE_BINS,
    UNKNOWN,
    PaddedTokens,
    PromptTokenizer,
    state_prompt,
    written_state,
)

RESERVED = 128  # PaliGemma's last ids, which stand for image segments


@dataclasses.dataclass(frozen=True)
class FastTokenizer:
    """pi0-FAST's language: prompts with the state in them, actions as the model's last ids.

    Attributes:
        prompts: for text; must know the words `Action:` and `|`.
        actions: for chunks.
        vocab_size: rows of the model's embedding: action id i is row `vocab_size - 129 - i`.
    """

    prompts: PromptTokenizer
    actions: ActionTokenizer
    vocab_size: int

    def __post_init__(self):
        room = self.vocab_size - RESERVED
        if self.actions.vocab_size > room:
            raise ValueError(
                f"{self.actions.vocab_size} action ids do not fit the model's {self.vocab_size} "
                f"rows, of which the last {RESERVED} are reserved."
            )
        if UNKNOWN in (*self._head, *self._bar):
            raise ValueError("the prompt tokenizer does not know the words 'Action:' and '|'.")

    @property
    def serialized(self) -> bytes:
        """All that decides what the tokens mean, for fingerprints."""
        a = self.actions
        shape = f"{a.horizon} {a.action_dim} {a.scale} {a.min_token} {self.vocab_size}"
        return self.prompts.serialized + a.serialized.encode() + shape.encode()

    @functools.cached_property
    def _head(self) -> tuple[int, ...]:
        return tuple(self.prompts.encode("Action: "))

    @functools.cached_property
    def _bar(self) -> tuple[int, ...]:
        return tuple(self.prompts.encode("|"))

    @property
    def overhead(self) -> int:
        """Tokens of a written action that are not the action: `Action: `, `|`, end."""
        return len(self._head) + len(self._bar) + 1

    def id_to_piece(self, index: int) -> str:
        """A piece of the prompt's vocabulary, or `<action N>`."""
        action = self.vocab_size - 1 - RESERVED - index
        if 0 <= action < self.actions.vocab_size:
            return f"<action {action}>"
        return self.prompts.id_to_piece(index)

    @functools.cached_property
    def is_action(self) -> Bool[np.ndarray, " v"]:
        """Which of the model's ids stand for actions."""
        place = self.vocab_size - 1 - RESERVED - np.arange(self.vocab_size)
        return (place >= 0) & (place < self.actions.vocab_size)

    @functools.cached_property
    def grammar(self) -> ActionGrammar:
        """What a whole action looks like."""
        size = self.actions.horizon * self.actions.action_dim
        fills = np.zeros(self.vocab_size, np.int32)
        fills[self.vocab_size - 1 - RESERVED - np.arange(self.actions.vocab_size)] = (
            self.actions.whole_characters
        )
        forced = [*self._head, *[-1] * size, *self._bar, EOS]
        return ActionGrammar(np.array(forced, np.int32), fills, len(self._head) + size)

    def encode_prompt(self, prompt: str, state: Float[np.ndarray, " s"]) -> PaddedTokens:
        """The prefix `Task: {text}, State: {bins};` with the normalised, unpadded state.

        Raises:
            ValueError: it needs more tokens than the policy takes, or the state is not finite.
        """
        text = f"{state_prompt(prompt.lower())} {written_state(state)}{FAST_TAIL}"
        return self.prompts.pad([BOS, *self.prompts.encode(text)])

    def encode_actions(self, chunk: Float[np.ndarray, "h a"]) -> list[int]:
        """What the model is to write: `Action: `, the chunk's ids, `|`, end."""
        ids = [self.vocab_size - 1 - RESERVED - i for i in self.actions.encode(chunk)]
        return [*self._head, *ids, *self._bar, EOS]

    def decode_actions(
        self, tokens: Int[Array, "b s"]
    ) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
        """Chunks of what the model wrote, and whether it wrote one: zeros where not.

        Each must begin with `Action: `, then hold the ids of one whole chunk up to the first `|`.
        """
        head = len(self._head)
        begins = jnp.all(tokens[:, :head] == jnp.array([self._head]), axis=1)
        rest = tokens[:, head:]
        bars = rest == self._bar[0]
        given = jnp.cumsum(bars, axis=1) == 0
        ids = self.vocab_size - 1 - RESERVED - rest
        chunk, ok = self.actions.decode(ids, given)
        ok = ok & begins & jnp.any(bars, axis=1)
        return jnp.where(ok[:, None, None], chunk, 0.0), ok


@dataclasses.dataclass(frozen=True, eq=False)
class ActionGrammar:
    """Which tokens a written action can go on with, so that it ends as a whole chunk.

    A written action is a list of places: `Action: `, one place a coefficient, `|`, end. Only pieces
    of whole characters are allowed, so a coefficient that needs broken ones is never written.

    Attributes:
        forced: the only token allowed at each place; -1 at a coefficient's.
        fills: how many coefficients each token writes; 0 for a token that is none.
        full: the place after the last coefficient.
    """

    forced: Int[np.ndarray, " p"]
    fills: Int[np.ndarray, " v"]
    full: int

    def allowed(self, place: Int[Array, " b"]) -> Bool[Array, "b v"]:
        """Tokens that may come next where elements stand at these places."""
        token = jnp.asarray(self.forced)[place][:, None]
        fills = jnp.asarray(self.fills)[None]
        fits = (fills > 0) & (place[:, None] + fills <= self.full)
        return jnp.where(token < 0, fits, jnp.arange(fills.size)[None] == token)

    def after(self, place: Int[Array, " b"], token: Int[Array, " b"]) -> Int[Array, " b"]:
        """The places after writing these tokens; the end stays at the end."""
        forced, fills = jnp.asarray(self.forced)[place], jnp.asarray(self.fills)[token]
        step = jnp.where(forced < 0, fills, 1)
        return jnp.minimum(place + step, len(self.forced) - 1)


def train_prompt_tokenizer(words: Iterable[str], path: str | Path) -> None:
    """Writes a SentencePiece model for FAST's prompts, for policies with a small language.

    Every word and every number a state can be written as is one piece; another word is
    an unknown piece, then spelled in their letters. PaliGemma's own pieces write a number digit by
    digit; one piece makes a short prompt.

    Args:
        words: of the instructions.
        path: the `.model` file to write.
    """
    words = [*words, *map(str, range(-1, STATE_BINS)), "Task:", "State:", "Action:", "|"]
    pieces = [f"▁{word}" for word in dict.fromkeys(words)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(sorted({*"".join(words)}, reverse=True))]),
        model_writer=model,
        model_type="char",
        character_coverage=1.0,
        hard_vocab_limit=False,
        use_all_vocab=True,
        pad_id=PAD,
        eos_id=EOS,
        bos_id=BOS,
        unk_id=UNKNOWN,
        # The default rule would turn the newline into a space.
        normalization_rule_name="identity",
        user_defined_symbols=[*pieces, ",", ";", "\n"],
        minloglevel=1,
    )
    Path(path).write_bytes(model.getvalue())


def pad_actions(sequences: Iterable[Sequence[int]], length: int) -> Int[np.ndarray, "n c"]:
    """Written actions padded with 0 to one length; ValueError when one is longer."""
    lists = [list(ids) for ids in sequences]
    longest = max(map(len, lists), default=0)
    if longest > length:
        raise ValueError(f"an action takes {longest} tokens, there is room for {length}.")
    return np.array([ids + [0] * (length - len(ids)) for ids in lists], np.int32)
