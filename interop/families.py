"""OpenVLA as a family of checkpoints; PyTorch is imported when one is loaded."""

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
