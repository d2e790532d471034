"""LIBERO's instructions in other words: same objects, same places, other verbs.

A table and not a language model, so that every paraphrase of all 130 tasks can be read and checked.
Nouns and places stay as they are; `perturbations` changes those.
"""

from __future__ import annotations

import re

VARIANTS = 3
_VERBS = {
    "pick up": ("grab", "take", "lift"),
    "put": ("place", "set", "lay"),
    "place": ("set", "put", "lay"),
    "turn on": ("switch on", "start", "fire up"),
    "turn off": ("switch off", "stop", "shut down"),
    "open": ("pull open", "slide open", "draw open"),
    "close": ("shut", "seal", "fasten"),
    "push": ("slide", "shove", "nudge"),
    "stack": ("pile", "put", "set"),
}


def paraphrase(prompt: str, variant: int) -> str:
    """The instruction in other words.

    Args:
        prompt: one of LIBERO's.
        variant: 0 to `VARIANTS` - 1.

    Raises:
        ValueError: an unknown variant, or a prompt without a verb from the table.
    """
    if not 0 <= variant < VARIANTS:
        raise ValueError(f"paraphrase {variant} is unknown, expected 0 to {VARIANTS - 1}.")
    verbs = rf"\b({'|'.join(_VERBS)})\b"
    words, count = re.subn(verbs, lambda match: _VERBS[match[1]][variant], prompt)
    if not count:
        raise ValueError(f"cannot paraphrase {prompt!r}: it has none of {', '.join(_VERBS)}.")
    return words
