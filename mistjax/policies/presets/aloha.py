"""ALOHA's units and those of the models trained on it: they differ in some joints and the grippers.

Both arms' second and third joints turn the other way round. ALOHA reads a gripper as a share of its
linear opening and commands it as a share of its joint's range; the models know angles only. Reading
and commanding are therefore no inverses of each other.

Source: the constants of ALOHA's arms (linear 0.01844 to 0.05800 m, joint -0.6213 to 1.4910 rad) and
of their gripper linkage (arm 36 mm, horn 22 mm); encoder counts 2405 to 3110 of 4096 around 2048 in
the models' training data, which is 0.5476 to 1.6296 rad.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

LINEAR = 0.01844, 0.05800
JOINT = -0.6213, 1.4910
MODEL = 0.5476, 1.6296
ARM, HORN = 0.036, 0.022
SIGNS = np.array([1, -1, -1, 1, 1, 1, 1] * 2, np.float32)
GRIPPERS = [6, 13]


@dataclasses.dataclass(frozen=True)
class AlohaUnits:
    """See the module and `RobotUnits`. Vectors: 6 joints and the gripper, left arm then right."""

    def to_model_state(self, state: Float[np.ndarray, "*b 14"]) -> Float[np.ndarray, "*b 14"]:
        state = state * SIGNS
        opening = _stretch(state[..., GRIPPERS], *LINEAR)
        sine = (HORN**2 + opening**2 - ARM**2) / (2 * HORN * opening)
        state[..., GRIPPERS] = _share(np.arcsin(np.clip(sine, -1, 1)), *MODEL)
        return state

    def to_model_actions(self, actions: Float[np.ndarray, "*b 14"]) -> Float[np.ndarray, "*b 14"]:
        actions = actions * SIGNS
        actions[..., GRIPPERS] = _stretch(actions[..., GRIPPERS], *JOINT) - MODEL[0]
        return actions

    def to_robot_actions(self, actions: Float[np.ndarray, "*b 14"]) -> Float[np.ndarray, "*b 14"]:
        actions = actions * SIGNS
        actions[..., GRIPPERS] = _share(actions[..., GRIPPERS] + MODEL[0], *JOINT)
        return actions


def _share(x: np.ndarray, low: float, high: float) -> np.ndarray:
    return (x - low) / (high - low)


def _stretch(x: np.ndarray, low: float, high: float) -> np.ndarray:
    return x * (high - low) + low
