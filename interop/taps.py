"""Taps on tensors: what they select, and the shapes of what they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mistjax.hooks.sites import PROJECTED, Tap, TokenLayout, layers_at, resolve_layers
from mistjax.policies.protocol import StackSpec


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
        if tap.site == PROJECTED:
            inner = (stacks["vlm"].width,)
        layers = len(resolve_layers(tap.layers, layers_at(tap.site, stack.depth)))
        shapes[str(tap)] = jax.ShapeDtypeStruct((*front, layers, batch, *tokens, *inner), dtype)
    return shapes


def record(tap: Tap, value: Tensor, layout: TokenLayout, valid: Tensor) -> Tensor:
    """What a tap keeps of a site's values [B,T,*D]."""
    if tap.reduce is None and tap.tokens != "last":
        start, stop = layout.select(tap.tokens)
        return value[:, start:stop]
    mask = select(layout, tap.tokens, valid)
    wide = mask.reshape(*mask.shape, *(1,) * (value.ndim - 2))
    if tap.reduce == "max":
        peak = torch.where(wide, value, -torch.inf).amax(dim=1)
        return torch.where(wide.any(dim=1), peak, 0)
    total = torch.where(wide, value, 0).sum(dim=1) / wide.sum(dim=1).clamp_min(1).to(value.dtype)
    return total if tap.reduce else total[:, None]


def select(layout: TokenLayout, selector: str, valid: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """`TokenLayout.mask` for tensors."""
    at = torch.arange(valid.shape[1], device=valid.device)
    if selector == "last":
        return (at == last_valid(valid)[:, None]) & valid
    start, stop = layout.select(selector)
    return valid & (at >= start) & (at < stop)


def last_valid(valid: Bool[Tensor, "b t"]) -> Int[Tensor, " b"]:
    """Position of each element's last real token."""
    at = torch.arange(valid.shape[1], device=valid.device)
    return torch.where(valid, at, -1).amax(dim=1)
