"""Sizes of an OpenVLA's stacks."""

from __future__ import annotations

from collections.abc import Mapping

from interop.openvla.config import OpenVLAConfig
from mistjax.hooks.sites import TokenLayout
from mistjax.policies.protocol import StackSpec


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
