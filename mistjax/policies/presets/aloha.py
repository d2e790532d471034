"""ALOHA's units and those of the models trained on it: they differ in some joints and the grippers.

Both arms' second and third joints turn the other way round. ALOHA reads a gripper as a share of its
linear opening and commands it as a share of its joint's range; the models know angles only. Reading
and commanding are therefore not inverses of each other.

Source: the constants of ALOHA's arms (linear 0.01844 to 0.05800 m, joint -0.6213 to 1.4910 rad) and
of their gripper linkage (arm 36 mm, horn 22 mm); encoder counts 2405 to 3110 of 4096 around 2048 in
the models' training data, which is 0.5476 to 1.6296 rad.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mistjax.models.normalize import AnyArray
from mistjax.policies.presets.base import Fallback

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
        state[..., GRIPPERS] = _share(_angle(state[..., GRIPPERS]), *MODEL)
        return state

    def to_robot_actions(self, actions: Float[np.ndarray, "*b 14"]) -> Float[np.ndarray, "*b 14"]:
        actions = actions * SIGNS
        actions[..., GRIPPERS] = _share(actions[..., GRIPPERS] + MODEL[0], *JOINT)
        return actions


@dataclasses.dataclass(frozen=True)
class AlohaFallback(Fallback):
    """Both arms' joints as they are, and the grippers commanded to the angle that they are at."""

    def __call__(self, state):
        xp = jnp if isinstance(state, jax.Array) else np
        grippers = xp.isin(xp.arange(state.shape[-1]), xp.array(GRIPPERS))
        return super().__call__(xp.where(grippers, _share(_angle(state, xp), *JOINT), state))


def _angle(share: AnyArray, xp: Any = np) -> AnyArray:
    """The joint's angle of a gripper from the share of its linear opening."""
    opening = share * (LINEAR[1] - LINEAR[0]) + LINEAR[0]
    sine = (HORN**2 + opening**2 - ARM**2) / (2 * HORN * opening)
    return xp.arcsin(xp.clip(sine, -1, 1))


def _share(x: AnyArray, low: float, high: float) -> AnyArray:
    return (x - low) / (high - low)
