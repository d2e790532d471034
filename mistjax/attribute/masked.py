"""`MaskedWords`: a policy that cannot read some words of its instruction, for whole episodes.

The words' tokens are masked and the gap closes, as in `leave_one_out`; nothing is put in their
place. How far success falls says how much the policy relies on them.

Source: language-masked rollouts, BOMB (Zhang et al., arXiv 2605.00321).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Sequence

import numpy as np

from mistjax.attribute.text import Word, words_of
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, PolicySpec, RawObs
from mistjax.policies.wrapper import Wrapper, language

_AROUND = ".,;:!?\"'"


@dataclasses.dataclass(frozen=True)
class MaskedWords(Wrapper):
    """See the module. An instruction that has none of the words is read as it is.

    Attributes:
        policy: what acts; it reads words.
        words: what is masked, in any case; `*` and `?` are wildcards.
    """

    policy: Policy
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.words or not all(word.strip() for word in self.words):
            raise ValueError(f"words to mask are {list(self.words)}: expected at least one.")
        language(self.policy)

    @classmethod
    def parse(cls, policy: Policy, text: str) -> MaskedWords:
        """From comma-separated words."""
        return cls(policy, tuple(word.strip() for word in text.split(",")))

    @property
    def name(self) -> str:
        """Of the arm; fit for a folder."""
        return "without_" + "_".join(re.sub(r"\W+", "-", word) for word in self.words)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The policy's, with a name and a fingerprint of its own."""
        return self.policy.spec.wrapped(self.name, self.words)

    def masks(self, word: str) -> bool:
        """Whether a word of an instruction is masked."""
        plain = _plain(word)
        return any(fnmatch.fnmatchcase(plain, pattern.lower()) for pattern in self.words)

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        """See `Policy.prepare`.

        Raises:
            ValueError: the instruction is not found among the words that the policy reads.
        """
        obs, tokenizer = self.policy.prepare(raw), language(self.policy).tokenizer
        tokens, mask = np.asarray(obs.tokenized_prompt), np.array(obs.tokenized_prompt_mask)
        for row, observation in enumerate(raw):
            read = words_of(tokenizer, tokens[row], mask[row])
            for word in own_words(read, self.preset.prompt(observation)):
                if self.masks(word.text):
                    mask[row, word.start : word.stop] = False
        return dataclasses.replace(obs, tokenized_prompt_mask=mask)


def own_words(read: Sequence[Word], prompt: str) -> Sequence[Word]:
    """Those of the words that a policy reads which are its instruction, not what is written around
    it (pi0.5 and pi0-FAST read the state as text too).

    Raises:
        ValueError: they are not there.
    """
    told = [_plain(word) for word in prompt.replace("_", " ").split()]
    texts = [_plain(word.text) for word in read]
    for start in range(len(texts) - len(told) + 1):
        if texts[start : start + len(told)] == told:
            return read[start : start + len(told)]
    raise ValueError(
        f"the policy reads {' '.join(texts)!r}, in which {prompt!r} is not found: words that its "
        "tokenizer does not know cannot be masked."
    )


def _plain(word: str) -> str:
    return word.strip(_AROUND).lower()
