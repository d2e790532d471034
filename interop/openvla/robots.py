"""What a robot asks of an OpenVLA, and whether a checkpoint was made for it.

LIBERO's data sets were turned into OpenVLA's conventions for training: grippers are 0 (closed) to 1
(open), and the pictures were stored as JPEG, resized and cropped. On LIBERO's robot that has to be
undone and repeated, or the policy never opens its gripper.

Source: the evaluation of OpenVLA (arXiv 2406.09246) and OpenVLA-OFT (arXiv 2502.19645) on LIBERO.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from interop.openvla import actions, processing
from interop.openvla.config import OpenVLAConfig
from mistjax.policies.presets import RobotPreset

TOLERANCE = 0.1  # of a dimension's range, by which the middle of its data may lie outside


def image_steps(preset: RobotPreset, config: OpenVLAConfig) -> tuple[Callable, ...]:
    """From a camera picture to the model's: on LIBERO as its checkpoints were fine-tuned, else
    resized. LIBERO's environment has turned the picture already. Small pictures, which a preset
    asks of the environment, are of a model that was trained on them as they are.
    """
    if "libero" not in preset.name or "image_size" in preset.env_options:
        return (config.resize,)
    lanczos = functools.partial(processing.lanczos3, size=config.towers[0].image_size)
    return processing.jpeg_roundtrip, lanczos, processing.center_crop


def finish_steps(
    preset: RobotPreset, stats: Mapping[str, Any], bounds: tuple[str, str]
) -> tuple[Callable, ...]:
    """From the data set's actions to the robot's: LIBERO's gripper, its last number.

    Raises:
        ValueError: its statistics are of neither convention.
    """
    if "libero" not in preset.name:
        return ()
    low, high = (stats[name][-1] for name in bounds)
    kept = not stats.get("mask", [True])[-1]
    if kept or (low >= 0 and high <= 1):
        return (actions.libero_gripper,)
    if (low, high) == (-1, 1) and "image_size" in preset.env_options:
        return ()  # trained here, on actions as they are executed
    raise ValueError(
        f"the gripper's statistics are from {low:.3g} to {high:.3g}, and OpenVLA's data sets of "
        "LIBERO have 0 (closed) to 1 (open): which sign opens it cannot be known. Give "
        "OpenVLAPolicy.load its finish_steps."
    )


def check_robot(
    folder: Any,
    preset: RobotPreset,
    config: OpenVLAConfig,
    key: str | None,
    bounds: tuple[str, str],
) -> None:
    """Compares a checkpoint with the robot; see `actions.check_statistics` for what is warned of.

    Raises:
        ValueError: actions or states of other widths or units, or no such `unnorm_key`.
    """
    if preset.units is not None:
        raise ValueError(
            f"preset {preset.name!r} converts to the units of openpi's models, and an OpenVLA acts "
            "in the robot's own: use a preset with units=None."
        )
    stats = actions.statistics(config.norm_stats, key, "action")
    where = f"{folder}: the action statistics of {key or next(iter(config.norm_stats))!r}"
    actions.check_statistics(where, stats, preset.action_dim, bounds)
    low, high = (np.asarray(stats[name], np.float64) for name in bounds)
    edges = np.array([preset.action_low, preset.action_high])
    margin = TOLERANCE * (edges[1] - edges[0])
    middle = (low + high) / 2
    if (
        outside := np.flatnonzero((middle < edges[0] - margin) | (middle > edges[1] + margin))
    ).size:
        name = preset.action_names[outside[0]]
        raise ValueError(
            f"{where} have {name!r} around {middle[outside[0]]:.3g}, and preset {preset.name!r} "
            f"takes {edges[0][outside[0]]:.3g} to {edges[1][outside[0]]:.3g}: they are of another "
            "robot."
        )
    if config.oft is None or config.oft.state_dim is None:
        return
    if config.oft.state_dim != preset.state_dim:
        raise ValueError(
            f"{folder} reads {config.oft.state_dim} numbers of state, and preset {preset.name!r} "
            f"has {preset.state_dim}: it is of another robot."
        )
    stats = actions.statistics(config.norm_stats, key, "proprio")
    where = where.replace("action statistics", "proprio statistics")
    actions.check_statistics(where, stats, preset.state_dim, bounds)
