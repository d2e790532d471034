"""LIBERO under the fault battery: cameras, state, instruction and pushes, as on the board."""

from __future__ import annotations

from mistjax.envs.faults.battery import CAMERAS
from mistjax.envs.faults.words import Choices
from mistjax.envs.faults.wrapper import Rig

_SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "at",
        "both",
        "in",
        "into",
        "it",
        "of",
        "on",
        "or",
        "out",
        "pick",
        "place",
        "put",
        "the",
        "to",
        "up",
    ]
)


def choices(prompt: str) -> Choices:
    """The words that name things, and the other such words of the sentence."""
    words = prompt.split()
    places = [i for i, word in enumerate(words) if word not in _SMALL_WORDS]
    things = sorted({words[i] for i in places})
    return {i: things if len(things) > 1 else (*things, "box") for i in places}


LIBERO = Rig(
    cameras=dict(zip(CAMERAS, ("observation/image", "observation/wrist_image"), strict=True)),
    state="observation/state",
    prompt="prompt",
    opening=6,
    metres=0.05,
    choices=choices,
)
