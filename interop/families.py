"""Families of PyTorch checkpoints; PyTorch is imported when one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistjax.policies.families import Family
from mistjax.policies.presets import RobotPreset
from mistjax.policies.protocol import Policy


def _reads_openvla(config: Mapping[str, Any] | None, preset: RobotPreset) -> bool:
    return config is not None and config.get("model_type") == "openvla"


def _load_openvla(folder: Path, preset: RobotPreset, unnorm_key: str | None) -> Policy:
    from interop.openvla.policy import OpenVLAPolicy

    return OpenVLAPolicy.load(folder, preset, unnorm_key=unnorm_key)


OPENVLA = Family("OpenVLA and OpenVLA-OFT", _reads_openvla, _load_openvla, several=True)


def _reads_lerobot(config: Mapping[str, Any] | None, preset: RobotPreset) -> bool:
    return config is not None and "input_features" in config and "type" in config


def _load_lerobot(folder: Path, preset: RobotPreset) -> Policy:
    try:
        from interop.lerobot.policy import LeRobotPolicy
    except ImportError as error:
        raise ImportError(f"{folder} is a LeRobot policy. {error}") from error

    return LeRobotPolicy.load(folder, preset)


LEROBOT = Family("LeRobot's SmolVLA", _reads_lerobot, _load_lerobot)
