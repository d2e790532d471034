"""FAST: action chunks to token ids and back.

Encoding is a cosine transform over time, rounded coefficients, one character each, and byte-pair
encoding (the `tokenizers` library, on the host). Decoding is tables and matrix products in JAX, so
a sampler can decode where it sampled, element by element, and say which hold no action.

Source: FAST (arXiv 2501.09747). The folder format is the hub's `physical-intelligence/fast`:
`processor_config.json` and `tokenizer.json`; its Python file is not needed and never run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import tokenizers
from jaxtyping import Array, Bool, Float, Int

from mistjax.files import read_json

RAISED = 0.2  # largest change of a value when coefficients are raised to `min_token`


@dataclasses.dataclass(frozen=True)
class ActionTokenizer:
    """FAST for chunks of one shape.

    Attributes:
        serialized: content of the `tokenizer.json` of a byte-level BPE.
        horizon, action_dim: shape of a chunk.
        scale: what coefficients are multiplied with before rounding.
        min_token: the smallest coefficient, which becomes character 0.

    Raises:
        ValueError: not such a BPE, or numbers that describe no chunk.
    """

    serialized: str = dataclasses.field(repr=False)
    horizon: int
    action_dim: int
    scale: float = 10.0
    min_token: int = 0

    def __post_init__(self):
        if min(self.horizon, self.action_dim) < 1:
            raise ValueError(
                f"chunks of {(self.horizon, self.action_dim)} numbers: expected at least one."
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale is {self.scale}: expected a number above 0.")
        try:
            vocabulary = self._bpe.get_vocab()
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"the byte pairs are not a tokenizer.json ({error}).") from None
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError(f"the {len(vocabulary)} byte pairs are not numbered from 0 on.")

    @classmethod
    def load(
        cls, folder: str | Path, horizon: int | None = None, action_dim: int | None = None
    ) -> ActionTokenizer:
        """Reads a folder in the hub's format.

        Args:
            folder: with `processor_config.json` and `tokenizer.json`.
            horizon, action_dim: shape of a chunk; None takes the folder's (the universal tokenizer
                has none).

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: neither the folder nor the caller says the shape, or a file is damaged.
        """
        config = read_json(Path(folder) / "processor_config.json")
        read_json(Path(folder) / "tokenizer.json")
        serialized = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
        horizon = config.get("time_horizon") if horizon is None else horizon
        action_dim = config.get("action_dim") if action_dim is None else action_dim
        if horizon is None or action_dim is None:
            raise ValueError(f"{folder} names no chunk shape: pass horizon and action_dim.")
        scale: Any = config.get("scale")
        low: Any = config.get("min_token")
        if {type(horizon), type(action_dim), type(low)} != {int} or type(scale) not in (int, float):
            raise ValueError(
                f"{folder}/processor_config.json has chunks of {(horizon, action_dim)}, scale "
                f"{scale!r} and min_token {low!r}: expected whole numbers, and one for the scale."
            )
        try:
            return cls(serialized, horizon, action_dim, scale, low)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Writes a folder in the hub's format."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "scale": self.scale,
            "min_token": self.min_token,
            "time_horizon": self.horizon,
            "action_dim": self.action_dim,
            "vocab_size": self.vocab_size,
        }
        (folder / "processor_config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "tokenizer.json").write_text(self.serialized)

    @classmethod
    def train(
        cls, chunks: Float[np.ndarray, "n h a"], *, vocab_size: int = 1024, scale: float = 10.0
    ) -> ActionTokenizer:
        """Learns byte pairs from normalised action chunks; at least 256 ids, one for each byte.

        Raises:
            ValueError: fewer than 256 ids, no chunks, or some that are not finite or too far apart
                to be normalised.
        """
        if vocab_size < 256:
            raise ValueError(
                f"vocab_size {vocab_size}: expected at least 256, one id for each byte."
            )
        if not chunks.size or not np.isfinite(chunks).all():
            raise ValueError(f"chunks of {chunks.shape}: expected finite numbers, at least one.")
        coefficients = _coefficients(chunks, scale)
        low = int(coefficients.min())
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        )
        bpe.train_from_iterator([_text(c - low) for c in coefficients], trainer)
        return cls(bpe.to_str(), chunks.shape[1], chunks.shape[2], scale, low)

    @functools.cached_property
    def _bpe(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.serialized)

    @property
    def vocab_size(self) -> int:
        return self._bpe.get_vocab_size()

    def encode(self, chunk: Float[np.ndarray, "h a"]) -> list[int]:
        """Ids of one normalised chunk, which `decode` gives back.

        Rounding moves no value by more than half of sqrt(`horizon`) / `scale`. Coefficients below
        `min_token` are raised to it where that moves no value by more than `RAISED`.

        Raises:
            ValueError: another shape, a value that is not finite, or a coefficient that the
                vocabulary cannot write.
        """
        if np.shape(chunk) != (self.horizon, self.action_dim):
            raise ValueError(
                f"a chunk of {np.shape(chunk)}: expected {(self.horizon, self.action_dim)}."
            )
        if not np.isfinite(chunk).all():
            raise ValueError("the chunk holds NaN or Inf, for which there are no tokens.")
        codes = _coefficients(chunk, self.scale) - self.min_token
        short = np.minimum(codes, 0) / self.scale
        raised = np.asarray(scipy.fft.idct(short, axis=0, norm="ortho"))
        try:
            if np.abs(raised).max() > RAISED:
                raise ValueError
            text = _text(np.maximum(codes, 0))
            ids = self._bpe.encode(text).ids
            if self._bpe.decode(ids) != text:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"the chunk's values {np.min(chunk):.3g} to {np.max(chunk):.3g} need coefficients "
                "that this tokenizer cannot write: is the chunk normalised?"
            ) from None
        return ids

    @functools.cached_property
    def _bytes(self) -> tuple[Int[np.ndarray, "v m"], Int[np.ndarray, " v"]]:
        """The bytes of every id, padded, and how many they are."""
        vocab = self._bpe.get_vocab()
        pieces = [b""] * (max(vocab.values()) + 1)
        for piece, index in vocab.items():
            known = all(char in _BYTE_OF for char in piece)
            pieces[index] = bytes(_BYTE_OF[c] for c in piece) if known else piece.encode()
        lengths = np.array([len(piece) for piece in pieces])
        table = np.zeros((len(pieces), lengths.max()), np.int32)
        for row, piece in zip(table, pieces, strict=True):
            row[: len(piece)] = list(piece)
        return table, lengths

    @functools.cached_property
    def whole_characters(self) -> Int[np.ndarray, " v"]:
        """How many coefficients each id writes; 0 for an id of broken characters."""
        table, lengths = self._bytes
        counts = np.zeros(len(table), np.int32)
        for i, (row, length) in enumerate(zip(table, lengths, strict=True)):
            with contextlib.suppress(UnicodeDecodeError):
                counts[i] = len(bytes(row[:length].astype(np.uint8)).decode())
        return counts

    def decode(
        self, ids: Int[Array, "b s"], given: Bool[Array, "b s"]
    ) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
        """Chunks of the given ids, and whether a batch element's ids are exactly one chunk.

        Ids that are not (an id outside the vocabulary, broken characters, too few or too many
        coefficients) gives zeros and False. Works under jit and vmap.
        """
        codes, ok = _codes(*self._bytes, ids, given, size=self.horizon * self.action_dim)
        coefficients = jnp.where(ok[:, None], codes + self.min_token, 0).astype(jnp.float32)
        basis = np.asarray(scipy.fft.idct(np.eye(self.horizon), axis=0, norm="ortho"), np.float32)
        chunk = coefficients.reshape(-1, self.horizon, self.action_dim) / self.scale
        return jnp.einsum("ht,bta->bha", basis, chunk, precision="highest"), ok


def _coefficients(chunk: np.ndarray, scale: float) -> np.ndarray:
    """Rounded cosine coefficients over the time axis, the second last."""
    with np.errstate(over="ignore", invalid="ignore"):  # what has overflowed is refused as text
        return np.around(np.asarray(scipy.fft.dct(chunk, axis=-2, norm="ortho")) * scale)


def _text(codes: np.ndarray) -> str:
    """One character each; ValueError for a code that is none of those which `decode` reads."""
    if not codes.max() <= 0xFFFF or ((codes >= 0xD800) & (codes <= 0xDFFF)).any():
        raise ValueError(f"coefficients from 0 to {codes.max():.0f} are not characters.")
    return "".join(map(chr, codes.ravel().astype(int)))


@functools.partial(jax.jit, static_argnames="size")
def _codes(table, lengths, ids, given, *, size: int):
    """Characters of rows of ids [B,size], and which rows are exactly that many."""
    known = jnp.all((ids >= 0) & (ids < len(table)) | ~given, axis=1)
    ids = jnp.clip(ids, 0, len(table) - 1)
    text, total = jax.vmap(_join, (0, 0, None))(
        table[ids], jnp.where(given, lengths[ids], 0), 3 * size
    )
    codes, whole = jax.vmap(_characters, (0, 0, None))(text, total, size)
    return codes, known & whole


def _join(pieces: Int[Array, "s m"], lengths: Int[Array, " s"], room: int):
    """All bytes one after another ([room], surplus dropped) and how many there are."""
    place = jnp.arange(pieces.shape[1])
    target = (jnp.cumsum(lengths) - lengths)[:, None] + place[None]
    target = jnp.where(place[None] < lengths[:, None], target, room)
    return jnp.zeros(room, jnp.int32).at[target].set(pieces, mode="drop"), jnp.sum(lengths)


def _characters(text: Int[Array, " n"], total: Int[Array, ""], size: int):
    """UTF-8 to code points: ([size], whether the bytes are exactly that many characters)."""
    index = jnp.arange(len(text))
    inside = index < total
    first = inside & (text & 0xC0 != 0x80)
    follow = inside & ~first
    second, third = (jnp.append(text, jnp.zeros(2, text.dtype))[i : i + len(text)] for i in (1, 2))
    width = 1 + (text >= 0xC0).astype(int) + (text >= 0xE0).astype(int)
    code = jnp.select(
        [width == 1, width == 2],
        [text, (text & 0x1F) << 6 | second & 0x3F],
        (text & 0x0F) << 12 | (second & 0x3F) << 6 | third & 0x3F,
    )
    smallest = jnp.select([width == 1, width == 2], [0, 0x80], 0x800)
    # A character ends where the next begins, so its width must be the distance.
    starts = jnp.where(first, index, len(text))
    following = jax.lax.cummin(jnp.append(starts[1:], len(text)), reverse=True)
    following = jnp.minimum(following, total)
    sound = (following - index == width) & (code >= smallest) & (text < 0xF0)
    number = jnp.cumsum(first) - 1
    codes = jnp.zeros(size, jnp.int32).at[jnp.where(first, number, size)].set(code, mode="drop")
    whole = jnp.all(sound | ~first) & ~(follow[0] & inside[0])
    return codes, whole & (jnp.sum(first) == size) & (total <= len(text))


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's printable stand-in for every byte (GPT-2's table), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = printable + [256 + i for i in range(len(others))]
    return {chr(char): byte for char, byte in zip(stand_ins, printable + others, strict=True)}


_BYTE_OF = _byte_alphabet()
