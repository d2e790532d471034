"""Does a checkpoint fit the preset that it is to be used with?

Parameters do not tell the normaliser, the horizon, or whether actions are relative to the state:
with the wrong preset of the same robot a checkpoint loads, runs and never succeeds. What a
checkpoint's statistics and leaf names do tell is compared here, before anything moves.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.normalize import EPSILON, NormStats
from mistjax.policies.presets.base import RobotPreset

TOLERANCE = 0.1  # of a dimension's range, by which a mean action may lie outside its bounds


def check_model(
    folder: str | Path,
    preset: RobotPreset,
    config: Pi0Config | FastConfig,
    leaves: Collection[str],
) -> None:
    """Compares the preset with the configuration in use and with the names of the parameters.

    Raises:
        ValueError: another kind of model, or another horizon.
    """
    if preset.model is None:
        return
    expected, configured, stored = kind(preset.model), kind(config), kind_of_leaves(leaves)
    if {configured, stored} != {expected}:
        holds = f"holds a {stored} model"
        if configured != stored:
            holds += f" and is configured as {configured}"
        raise ValueError(
            f"{folder} {holds}, and preset {preset.name!r} is for {expected}: it would normalise "
            f"and prompt the wrong way, so use the preset of the same robot for {stored}."
        )
    if config.action_horizon != preset.model.action_horizon:
        raise ValueError(
            f"{folder} predicts {config.action_horizon} actions at a time, and preset "
            f"{preset.name!r} is for a horizon of {preset.model.action_horizon}: it is of "
            "another configuration."
        )


def check_sizes(folder: str | Path, preset: RobotPreset, config: Pi0Config | FastConfig) -> None:
    """Compares the preset's cameras and vectors with the model's: padding and cutting hide a
    difference.

    Raises:
        ValueError: a camera of the model that the preset does not know, or too little room.
    """
    if unknown := sorted(set(config.image_keys) - set(preset.cameras)):
        raise ValueError(
            f"{folder} has the cameras {unknown}, which preset {preset.name!r} does not know: it "
            f"has {list(preset.cameras)}. Use the preset of this checkpoint, or map a camera that "
            "the robot lacks to None."
        )
    sizes = {
        "numbers of an action": (preset.action_dim, config.action_dim),
        "actions at a time": (preset.execute_steps, config.action_horizon),
    }
    if isinstance(config, Pi0Config):  # pi0-FAST reads the state in its prompt
        sizes["numbers of a state"] = preset.state_dim, config.action_dim
    for what, (needed, there) in sizes.items():
        if needed > there:
            raise ValueError(
                f"{folder} has {there} {what}, and preset {preset.name!r} needs {needed}: it is of "
                "another robot."
            )


def check_statistics(
    folder: str | Path, preset: RobotPreset, stats: Mapping[str, NormStats]
) -> None:
    """Compares the preset with the statistics of states and actions.

    The mean action of the training data must be one that the robot can make. Statistics of actions
    relative to the state fail this in a preset for absolute actions, and the reverse. A dimension
    that never changed in training gives a warning: what is read there is magnified a million times.

    Raises:
        ValueError: statistics are missing, of another robot, or of other actions.
    """
    where = f"{folder}: the statistics of {preset.asset_id!r}"
    widths = {"state": preset.state_dim, "actions": preset.action_dim}
    for name, width in widths.items():
        if name not in stats:
            raise ValueError(f"{where} are of {sorted(stats)}; {name!r} is missing.")
        if _used(stats[name]) > width or stats[name].width < width:
            raise ValueError(
                f"{where} have {_used(stats[name])} dimensions of {name!r}, and preset "
                f"{preset.name!r} has {width}: they are of another robot."
            )
        if preset.normalizer == "quantile" and stats[name].q01 is None:
            raise ValueError(
                f"{where} hold no quantiles of {name!r}, by which preset {preset.name!r} "
                "normalises: use a preset with z-scores, or statistics with q01 and q99."
            )
        if constant := _constant(stats[name], preset, width):
            labels = preset.action_names if name == "actions" else range(width)
            warnings.warn(
                f"{where} say that dimension {', '.join(str(labels[i]) for i in constant)} of "
                f"{name!r} never changed in training: any change of it is far outside the data.",
                stacklevel=3,
            )
    mean = mean_action(preset, stats)
    low, high = np.array(preset.action_low), np.array(preset.action_high)
    margin = TOLERANCE * (high - low)
    if (outside := np.flatnonzero((mean < low - margin) | (mean > high + margin))).size:
        worst = outside[np.argmax(np.abs(mean[outside]))]
        relative = "relative to the state" if preset.delta else "not relative to the state"
        raise ValueError(
            f"{where} do not fit preset {preset.name!r}, whose actions are {relative}: their mean "
            f"{preset.action_names[worst]!r} would be {mean[worst]:.3g}, outside "
            f"[{low[worst]:.3g}, {high[worst]:.3g}]. Such a policy never succeeds; use the preset "
            "that this checkpoint was trained with."
        )


def _constant(stats: NormStats, preset: RobotPreset, width: int) -> list[int]:
    """Dimensions whose normaliser divides by nothing but its epsilon."""
    if preset.normalizer == "quantile":
        assert stats.q01 is not None and stats.q99 is not None
        spread = np.asarray(stats.q99) - np.asarray(stats.q01)
    else:
        spread = np.asarray(stats.std)
    return np.flatnonzero(spread[:width] <= EPSILON).tolist()


def mean_action(preset: RobotPreset, stats: Mapping[str, NormStats]) -> Float[np.ndarray, " a"]:
    """The training data's mean action in the robot's units, as the preset reads the statistics."""
    mean = np.array(stats["actions"].mean[: preset.action_dim], np.float64)
    relative = np.flatnonzero(preset.delta)
    mean[relative] += np.asarray(stats["state"].mean, np.float64)[relative]
    return mean if preset.units is None else preset.units.to_robot_actions(mean)


def kind(config: Pi0Config | FastConfig) -> str:
    """pi0, pi0.5 or pi0-FAST."""
    if isinstance(config, FastConfig):
        return "pi0-FAST"
    return "pi0.5" if config.pi05 else "pi0"


def kind_of_leaves(names: Collection[str]) -> str:
    """The same, of a parameter tree: only pi0 projects the state, and FAST has no action head."""
    tops = {name.split("/")[0] for name in names}
    if "action_out_proj" not in tops:
        return "pi0-FAST"
    return "pi0" if "state_proj" in tops else "pi0.5"


def _used(stats: NormStats) -> int:
    """Dimensions without those that openpi pads with: mean 0, deviation 0 or 1."""
    mean, std = np.asarray(stats.mean), np.asarray(stats.std)
    padding = (mean == 0) & ((std == 0) | (std == 1))
    return int(np.flatnonzero(~padding).max(initial=-1)) + 1
