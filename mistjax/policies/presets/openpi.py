"""Presets of the checkpoints that openpi publishes, under the names that it gives them.

Checkpoints of one robot differ in the model, the normaliser, the horizon, whether actions are
relative to the state, and whether pi0.5 is told the state: the wrong combination loads and runs,
and never succeeds. `presets.check` compares a checkpoint with its preset.

Source: openpi's training configurations and policy transforms (2026-06). How many actions to
execute is what openpi's own clients do.
"""

from __future__ import annotations

import dataclasses
import math

from mistjax.models.config import FAST_IMAGE_KEYS, IMAGE_KEYS, PI0, PI05, FastConfig
from mistjax.models.transforms import delta_mask
from mistjax.policies.presets.aloha import AlohaFallback, AlohaUnits
from mistjax.policies.presets.base import Fallback, RobotPreset

_replace = dataclasses.replace


def _cameras(keys: tuple[str, ...], *raw: str | None) -> dict[str, str | None]:
    return dict(zip(keys, raw, strict=True))


PI0_LIBERO = RobotPreset(
    name="pi0_libero",
    cameras=_cameras(IMAGE_KEYS, "observation/image", "observation/wrist_image", None),
    state_key="observation/state",
    state_dim=8,
    action_names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
    action_low=(-1.0,) * 7,
    action_high=(1.0,) * 7,
    gripper_index=6,
    execute_steps=5,
    delta=delta_mask(6, -1),
    asset="physical-intelligence/libero",
    model=PI0,
    fallback=Fallback((0.0,) * 7),  # a gripper command of 0 leaves robosuite's gripper as it was
)
PI0_FAST_LIBERO = _replace(
    PI0_LIBERO,
    name="pi0_fast_libero",
    normalizer="quantile",
    model=FastConfig(image_keys=IMAGE_KEYS, action_dim=7, action_horizon=10, max_token_len=180),
)
PI05_LIBERO = _replace(
    PI0_LIBERO,
    name="pi05_libero",
    normalizer="quantile",
    delta=(),
    model=_replace(PI05, action_horizon=10),
)

PI0_DROID = RobotPreset(
    name="pi0_droid",
    cameras=_cameras(
        IMAGE_KEYS, "observation/exterior_image_1_left", "observation/wrist_image_left", None
    ),
    state_key=("observation/joint_position", "observation/gripper_position"),
    state_dim=8,
    action_names=(*(f"joint {i} velocity" for i in range(1, 8)), "gripper"),
    action_low=(-1.0,) * 7 + (0.0,),
    action_high=(1.0,) * 8,
    gripper_index=7,
    execute_steps=8,
    asset="droid",
    fallback=Fallback((0.0,) * 8, from_state=((7, 7),)),
    model=_replace(PI0, action_horizon=10),
)
PI0_FAST_DROID = _replace(
    PI0_DROID,
    name="pi0_fast_droid",
    cameras=_cameras(
        FAST_IMAGE_KEYS, "observation/exterior_image_1_left", None, "observation/wrist_image_left"
    ),
    normalizer="quantile",
    model=FastConfig(action_dim=8, action_horizon=10),
)
PI05_DROID = _replace(
    PI0_DROID,
    name="pi05_droid",
    normalizer="quantile",
    state_in_prompt=True,
    model=_replace(PI05, action_horizon=15),
)

_ARM = ("waist", "shoulder", "elbow", "forearm roll", "wrist angle", "wrist rotate", "gripper")
PI0_ALOHA = RobotPreset(
    name="pi0_aloha",
    cameras=_cameras(
        IMAGE_KEYS, "images/cam_high", "images/cam_left_wrist", "images/cam_right_wrist"
    ),
    state_key="state",
    state_dim=14,
    action_names=tuple(f"{side} {joint}" for side in ("left", "right") for joint in _ARM),
    action_low=((-math.pi,) * 6 + (0.0,)) * 2,
    action_high=((math.pi,) * 6 + (1.0,)) * 2,
    gripper_index=None,
    execute_steps=25,
    delta=delta_mask(6, -1, 6, -1),
    units=AlohaUnits(),
    asset="trossen",
    model=PI0,
    fallback=AlohaFallback((0.0,) * 14, from_state=tuple((i, i) for i in range(14))),
)
PI05_ALOHA = _replace(
    PI0_ALOHA, name="pi05_aloha", normalizer="quantile", state_in_prompt=True, model=PI05
)

OPENPI = (
    PI0_LIBERO,
    PI0_FAST_LIBERO,
    PI05_LIBERO,
    PI0_DROID,
    PI0_FAST_DROID,
    PI05_DROID,
    PI0_ALOHA,
    PI05_ALOHA,
    _replace(PI0_ALOHA, name="pi0_aloha_towel", default_prompt="fold the towel"),
    _replace(
        PI0_ALOHA,
        name="pi0_aloha_tupperware",
        default_prompt="open the tupperware and put the food on the plate",
    ),
    _replace(PI0_ALOHA, name="pi0_aloha_pen_uncap", default_prompt="uncap the pen"),
)
