"""Robot presets: how a robot's raw observations and actions map to model inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mistjax.models.config import IMAGE_KEYS


@dataclasses.dataclass(frozen=True, eq=False)
class RobotPreset:
    """What a policy needs to know of a robot; compared by identity, as a static argument of jit.

    Attributes:
        name: the preset's name; also the asset id of its statistics in a checkpoint.
        cameras: model camera -> raw observation key, or None for a camera that the robot lacks
            (zeros, masked out).
        state_key: raw observation key of the state.
        state_dim: width of the raw state.
        action_names: what each action dimension means.
        action_low, action_high: bounds in the env's units.
        gripper_index: which action dimension is the gripper, or None.
        execute_steps: actions of a chunk to execute before the next inference.
        normalizer: `zscore` (pi0) or `quantile` (pi0.5, pi0-FAST).
        state_in_prompt: pi0.5 writes the state's bins into the prompt.
    """

    name: str
    cameras: Mapping[str, str | None]
    state_key: str
    state_dim: int
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    gripper_index: int | None
    execute_steps: int
    normalizer: Literal["zscore", "quantile"] = "zscore"
    state_in_prompt: bool = False

    @property
    def action_dim(self) -> int:
        return len(self.action_names)


BOARD = RobotPreset(
    name="board",
    cameras={
        IMAGE_KEYS[0]: "observation/image",
        IMAGE_KEYS[1]: "observation/wrist_image",
    },
    state_key="observation/state",
    state_dim=5,
    action_names=("dx", "dy", "dz", "gripper"),
    action_low=(-1.0,) * 4,
    action_high=(1.0,) * 4,
    gripper_index=3,
    execute_steps=4,
)

PRESETS = {preset.name: preset for preset in (BOARD,)}
