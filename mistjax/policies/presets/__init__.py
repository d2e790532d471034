"""Robot presets: cameras, state, action units and normalisation of each robot."""

from mistjax.policies.presets.base import Fallback, RobotPreset
from mistjax.policies.presets.registry import BOARD, BOARD_FAST, LIBERO_TINY, PRESETS, preset_of

__all__ = [
    "BOARD",
    "BOARD_FAST",
    "LIBERO_TINY",
    "PRESETS",
    "Fallback",
    "RobotPreset",
    "preset_of",
]
