"""The declared fallback: what goes out where a policy gives no action."""

from __future__ import annotations

import numpy as np

from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.protocol import PolicySpec
from mistjax.serve.gate import is_velocity
from mistjax.serve.settings import Stop


class StopRobot(RuntimeError):
    """There is no action, and the declared fallback is to end the connection."""


def check_fallback(name: Stop, preset: RobotPreset) -> None:
    """Raises ValueError where a fallback does not fit the robot."""
    if name == "hold" and preset.fallback is None:
        raise ValueError(
            f"preset {preset.name!r} does not say what holds the robot still: give RobotPreset "
            "a `fallback`, or serve with --fallback zero or stop."
        )
    if name == "zero" and not all(
        moves or i == preset.gripper_index for i, moves in enumerate(is_velocity(preset))
    ):
        raise ValueError(
            f"preset {preset.name!r} is moved by positions, where 0 is a place to go to and "
            "no velocity: serve with --fallback hold or stop."
        )


def fallback_chunk(
    name: Stop, spec: PolicySpec, preset: RobotPreset, state: np.ndarray
) -> np.ndarray:
    """A whole chunk [H,A] of the declared fallback, in the robot's units.

    Args:
        name: of the fallback.
        spec: of the policy.
        preset: the robot.
        state: its raw state [S].

    Raises:
        StopRobot: the fallback is `stop`.
    """
    if name == "stop":
        raise StopRobot("the policy gives no action: this connection ends, stop the robot.")
    if name == "zero" and preset.fallback is None:
        action = np.zeros(spec.action_dim, np.float32)
    else:
        action = np.array(preset.still(state[None])[0])
    if name == "zero":
        moves = [i for i in range(spec.action_dim) if i != preset.gripper_index]
        action[moves] = 0.0
    return np.repeat(action[None], spec.action_horizon, axis=0)
