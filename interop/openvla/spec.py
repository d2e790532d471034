"""What a policy says of its network: stacks, shapes of taps, and the fingerprint of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import torch

from interop.openvla.config import OpenVLAConfig
from mistjax.hooks.sites import Tap, TokenLayout, resolve_layers
from mistjax.policies.presets import RobotPreset
from mistjax.policies.protocol import PolicySpec, StackSpec


def stack_specs(config: OpenVLAConfig, layouts: Mapping[str, TokenLayout]) -> dict[str, StackSpec]:
    """Sizes of `vision`, `dino`, `vlm` and `action`; the last block of a tower is never run."""
    dino, siglip = config.towers
    t = config.text
    llama = (
        t.num_hidden_layers,
        t.hidden_size,
        t.intermediate_size,
        t.num_attention_heads,
        t.head_dim,
    )
    sizes = {"vlm": llama, "action": llama}
    for name, c in (("vision", siglip), ("dino", dino)):
        sizes[name] = (
            *(c.depth - 1, c.embed_dim, c.mlp_dim),
            *(c.num_heads, c.embed_dim // c.num_heads),
        )
    return {name: StackSpec(*size, layouts[name]) for name, size in sizes.items()}


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


def tap_shapes(
    stacks: Mapping[str, StackSpec], taps: Sequence[Tap], batch: int, steps: int, dtype: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """What each tap returns for a batch of that size; those on `action` have `steps` in front."""
    shapes = {}
    for tap in taps:
        stack = stacks[tap.stack]
        start, stop = stack.layout.select(tap.tokens)
        tokens = () if tap.reduce else (1 if tap.tokens == "last" else stop - start,)
        inner = {
            "attn_heads": (stack.heads, stack.head_dim),
            "mlp_neurons": (stack.neurons,),
        }.get(tap.point, (stack.width,))
        front = (steps,) if tap.stack == "action" else ()
        layers = len(resolve_layers(tap.layers, stack.depth))
        shapes[str(tap)] = jax.ShapeDtypeStruct((*front, layers, batch, *tokens, *inner), dtype)
    return shapes


def fingerprint(config: OpenVLAConfig, modules: Sequence[torch.nn.Module], others: bytes) -> str:
    """SHA-256 (hex) of all that decides what a policy does. Reads every weight: a minute for 7B."""
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(others)
    return digest.hexdigest()
