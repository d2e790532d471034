"""The board under the fault battery: where its inputs are, and its scene changed in mid-episode."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np

from mistjax.envs.board.env import IMAGE_KEYS, PROMPT_KEY, STATE_KEY
from mistjax.envs.board.instructions import COLOURS
from mistjax.envs.board.perturbations import content_words, perturb
from mistjax.envs.board.physics import STEP
from mistjax.envs.faults.battery import CAMERAS
from mistjax.envs.faults.words import Choices
from mistjax.envs.faults.wrapper import Rig

SCENE_STREAM = 0x5CE
"""Names the random stream of changed scenes."""


def choices(prompt: str) -> Choices:
    """Colour, row and column, and the others there are."""
    return {
        place: COLOURS if name == "colour" else tuple("12345")
        for name, place in content_words(prompt).items()
    }


def change_scene(env: gym.Env, kind: str, strength: float, seed: int) -> dict[str, Any]:
    """The board looks different from now on; everything stays where it is."""
    board: Any = env
    now = board.snapshot()
    rng = np.random.default_rng([seed, SCENE_STREAM])
    changed = perturb(now.episode, {kind: strength}, rng)
    return board.restore(dataclasses.replace(now, episode=changed))[0]


BOARD = Rig(
    cameras=dict(zip(CAMERAS, IMAGE_KEYS, strict=True)),
    state=STATE_KEY,
    prompt=PROMPT_KEY,
    opening=3,
    metres=STEP,
    choices=choices,
    change_scene=change_scene,
    gripper_opens=1,
)
