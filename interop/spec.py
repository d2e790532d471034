"""What a PyTorch policy says of itself: its spec, and the fingerprint of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mistjax.policies.presets import RobotPreset
from mistjax.policies.protocol import PolicySpec, StackSpec


def policy_spec(
    name: str,
    fingerprint: str,
    preset: RobotPreset,
    cameras: Mapping[str, str | None],
    *,
    stacks: Mapping[str, StackSpec],
    horizon: int,
    steps: int,
    action_scale: tuple[float, ...],
    action_offset: tuple[float, ...],
) -> PolicySpec:
    """A policy on a robot; never executes more actions than a chunk has."""
    return PolicySpec(
        name=name,
        fingerprint=fingerprint,
        action_dim=preset.action_dim,
        action_horizon=horizon,
        execute_steps=min(preset.execute_steps, horizon),
        action_names=preset.action_names,
        action_low=preset.action_low,
        action_high=preset.action_high,
        gripper_index=preset.gripper_index,
        action_scale=action_scale,
        action_offset=action_offset,
        cameras={camera: key for camera, key in cameras.items() if key is not None},
        stacks=stacks,
        num_steps=steps,
    )


def fingerprint(
    config: Mapping[str, Any], modules: Sequence[torch.nn.Module], others: bytes
) -> str:
    """SHA-256 (hex) of all that decides what a policy does. Reads every weight: a minute for 7B."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(others)
    return digest.hexdigest()
