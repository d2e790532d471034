"""Which policy a checkpoint folder holds, by its `config.json` or, for openpi's, by its preset."""

from __future__ import annotations

from pathlib import Path

from mistjax.models import checkpoints
from mistjax.models.config import FastConfig
from mistjax.policies.fast import FastPolicy
from mistjax.policies.pi import PiPolicy
from mistjax.policies.presets import RobotPreset
from mistjax.policies.protocol import Policy


def read_policy(folder: str | Path, preset: RobotPreset) -> Policy:
    """Loads a pi0, pi0.5, pi0-FAST, OpenVLA or OpenVLA-OFT.

    Args:
        folder: the checkpoint.
        preset: the robot.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: the weights do not fit the configuration.
        ImportError: an OpenVLA without PyTorch; names the extra.
    """
    checkpoints.refuse_foreign(folder)
    if preset.model is not None and not checkpoints.has_config(folder):
        published = FastPolicy if isinstance(preset.model, FastConfig) else PiPolicy
        return published.load(folder, preset)
    config = checkpoints.load_config(folder)
    if config.get("model_type") == "openvla":
        from mistjax.interop.openvla.policy import OpenVLAPolicy

        return OpenVLAPolicy.load(folder, preset)
    return (FastPolicy if "max_decoding_steps" in config else PiPolicy).load(folder, preset)
