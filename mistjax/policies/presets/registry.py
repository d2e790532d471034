"""Robot presets by name: the simulated board, and the robots of openpi's checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mistjax.files import read_json
from mistjax.models.config import IMAGE_KEYS, FastConfig, Pi0Config
from mistjax.models.normalize import NormStats
from mistjax.policies.presets.base import Fallback, RobotPreset
from mistjax.policies.presets.check import kind
from mistjax.policies.presets.openpi import OPENPI, PI0_LIBERO

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
    fallback=Fallback((0.0, 0.0, 0.0, -1.0), from_state=((3, 4),)),
)

# pi0-FAST writes the state into the prompt and the actions as tokens: both in quantile units.
BOARD_FAST = dataclasses.replace(BOARD, name="board_fast", normalizer="quantile")

# LIBERO's robot with the two cameras that it has, small pictures, and actions as they are executed.
LIBERO_TINY = dataclasses.replace(
    PI0_LIBERO,
    name="libero_tiny",
    cameras={name: key for name, key in PI0_LIBERO.cameras.items() if key is not None},
    delta=(),
    asset=None,
    model=None,
    env_options={"image_size": 64, "reflections": False},
)

# LIBERO's robot for OpenVLA and OpenVLA-OFT, which have conventions of their own about its pictures
# and gripper: see `interop.openvla.robots`.
OPENVLA_LIBERO = dataclasses.replace(
    LIBERO_TINY, name="openvla_libero", execute_steps=8, env_options={}
)

_OURS = (BOARD, BOARD_FAST, LIBERO_TINY, OPENVLA_LIBERO)
PRESETS = {preset.name: preset for preset in (*_OURS, *OPENPI)}


def preset_of(source: str | Path, folder: Path) -> str:
    """The preset that a checkpoint's path names, else that of its statistics, else "board".

    Args:
        source: what the user named, e.g. gs://openpi-assets/checkpoints/pi05_libero.
        folder: where it lies on this machine.
    """
    named = (*reversed(PurePosixPath(str(source)).parts), folder.resolve().name)
    parts = (name for part in named for name in (part, part.split("@")[0]))  # NAME@COMMIT
    statistics = sorted(path.parent.name for path in folder.glob("assets/*/norm_stats.json"))
    if (file := folder / "dataset_statistics.json").exists():  # an OpenVLA's
        names = read_json(file)
        statistics += ["openvla_libero"] if any(n.startswith("libero") for n in names) else names
    return next((name for name in (*parts, *statistics) if name in PRESETS), BOARD.name)


def first_preset(
    config: Pi0Config | FastConfig, stats: Mapping[str, NormStats]
) -> RobotPreset | None:
    """The first preset that fits a model and its statistics; one made for the model goes first."""
    widths = stats["state"].width, stats["actions"].width
    fitting = [
        preset
        for preset in PRESETS.values()
        if preset.model in (None, config)
        and (preset.normalizer == "zscore") == (kind(config) == "pi0")
        and (preset.state_dim, preset.action_dim) == widths
    ]
    return min(fitting, key=lambda preset: preset.model is None, default=None)
