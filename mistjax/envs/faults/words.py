"""What a fault does to an instruction: functions of the prompt, on the host.

The words that matter are given by the environment (`places`: name -> index in the split prompt, and
`choices`: what else could stand there). Strength says how many of them change: one up to 1/3, all
three at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

UNKNOWN_WORD = "zzz"
Rng = np.random.Generator
Choices = Mapping[int, Sequence[str]]
Rewrite = Callable[[list[str], list[int], Choices, Rng], list[str]]


def rewrite(kind: str, prompt: str, choices: Choices, strength: float, seed: int) -> str:
    """The prompt under a fault.

    Args:
        kind: key of `WORDS`.
        prompt: words between spaces.
        choices: indices of the words that matter -> other words that could stand there.
        strength: from 0 (the prompt as it is) to 1.
        seed: of the episode.
    """
    rng = np.random.default_rng([seed, 0x0DD])
    count = math.ceil(round(len(choices) * strength, 6))
    places = sorted(rng.permutation(sorted(choices))[:count].tolist())
    return " ".join(WORDS[kind](prompt.split(), places, choices, rng)) if places else prompt


def typos(words: list[str], places: list[int], choices: Choices, rng: Rng) -> list[str]:
    """Two letters of a word are swapped; a single character is doubled."""
    words = list(words)
    for i in places:
        word = words[i]
        at = int(rng.integers(max(len(word) - 1, 1)))
        swapped = word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :]
        words[i] = swapped if swapped != word else word + word[-1]
    return words


def unknown_word(words: list[str], places: list[int], choices: Choices, rng: Rng) -> list[str]:
    """A word that no policy was trained on."""
    return [UNKNOWN_WORD if i in places else word for i, word in enumerate(words)]


def dropped_word(words: list[str], places: list[int], choices: Choices, rng: Rng) -> list[str]:
    """A word is missing."""
    return [word for i, word in enumerate(words) if i not in places]


def swapped_word(words: list[str], places: list[int], choices: Choices, rng: Rng) -> list[str]:
    """Another word of the same kind."""
    words = list(words)
    for i in places:
        words[i] = str(rng.choice([word for word in choices[i] if word != words[i]]))
    return words


WORDS: dict[str, Rewrite] = {
    f.__name__: f for f in (typos, unknown_word, dropped_word, swapped_word)
}
