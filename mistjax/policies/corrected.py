"""`CorrectedPrompt`: a word that no clean run used becomes the nearest one that some did.

Preparation of an input, on the host, before the prompt is tokenised: it needs no monitor, and helps
where a typo is there from the start, so that there is no better prompt to go back to. A prompt of
known words alone is left as it is, so that the actions are then bit for bit those of the policy
inside. A word is left alone, too, where nothing is near, or where two words are equally near: a
guess between two instructions is worse than an unknown word. What was changed is told, once for
each prompt, in the log.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, PolicySpec, RawObs, Sample
from mistjax.policies.wrapper import Briefed, told, traceable

NEAR = 0.6
"""Least similarity, of `difflib.SequenceMatcher`, at which a word is corrected."""
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Correction:
    """A word of a prompt, and what it became."""

    word: str
    known: str

    def __str__(self) -> str:
        return f"{self.word!r} -> {self.known!r}"


def words_of(prompts: Iterable[str]) -> tuple[str, ...]:
    """The words of some prompts, each once, in lower case and without punctuation."""
    return tuple(
        sorted({plain for text in prompts for word in text.split() if (plain := _plain(word))})
    )


def correct(prompt: str, words: Sequence[str]) -> tuple[str, tuple[Correction, ...]]:
    """(the prompt with its unknown words corrected, what was changed).

    Args:
        prompt: words between spaces; spaces and punctuation stay.
        words: the known ones, see `words_of`.
    """
    changes, parts = [], re.split(r"(\s+)", prompt)
    for place, part in enumerate(parts):
        word = _plain(part)
        if word and word not in words and (near := nearest(word, words)) is not None:
            changes.append(Correction(word, near))
            parts[place] = re.sub(re.escape(word), near, part, count=1, flags=re.IGNORECASE)
    return "".join(parts), tuple(changes)


def nearest(word: str, words: Sequence[str]) -> str | None:
    """The known word that is most similar; None where none is near, or two are equally near."""
    ratios = {known: _similarity(word, known) for known in words}
    best = max(ratios.values(), default=0.0)
    found = [known for known, ratio in ratios.items() if ratio == best]
    return found[0] if best >= NEAR and len(found) == 1 else None


def _similarity(a: str, b: str) -> float:
    """Twice the letters in common, in their order, over all letters; of both directions the larger,
    since `difflib` is not symmetrical.
    """
    return max(difflib.SequenceMatcher(None, *pair, False).ratio() for pair in ((a, b), (b, a)))


def _plain(word: str) -> str:
    return word.strip(".,;:!?\"'()").lower()


@flax.struct.dataclass
class CorrectedPrompt(Briefed):
    """See the module; traceable where the policy inside is.

    Attributes:
        policy: what acts.
        words: those that its clean runs used (static).
    """

    policy: Policy
    words: tuple[str, ...] = flax.struct.field(pytree_node=False)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The policy's, with a fingerprint of its own."""
        return self.policy.spec.wrapped("corrected", self.words)

    def corrected(self, prompt: str) -> str:
        """The prompt that the policy reads."""
        return _told(prompt, self.words)

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        """See `Policy.prepare`."""
        said = [{**one, "prompt": self.corrected(self.preset.prompt(one))} for one in raw]
        return self.policy.prepare(said)

    def encode_prompts(
        self, prompts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """See `TraceablePolicy`."""
        return traceable(self.policy).encode_prompts([self.corrected(text) for text in prompts])

    def observe(
        self, raw: Mapping[str, Array], words: tuple[Int[Array, "b l"], Bool[Array, "b l"]]
    ) -> Observation:
        """See `TraceablePolicy`."""
        return traceable(self.policy).observe(raw, words)

    def act(self, sample: Sample, raw: Mapping[str, Array]) -> Float[Array, "b h a"]:
        """See `TraceablePolicy`."""
        return traceable(self.policy).act(sample, raw)

    def told(self, state: Any, brief: Any) -> Any:
        """See `Briefed`; the state is that of the policy inside."""
        return told(self.policy, state, brief)


@functools.lru_cache(maxsize=4096)
def _told(prompt: str, words: tuple[str, ...]) -> str:
    text, changes = correct(prompt, words)
    if changes:
        _LOG.warning("prompt corrected: %s", ", ".join(map(str, changes)))
    return text
