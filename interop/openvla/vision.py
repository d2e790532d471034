"""The vision side: two vision transformers, fused patch by patch, and the projector to the LLM.

Module names follow timm's, so a published state dict loads by name. A tower's output is that of
its second to last block, without a final norm; the last block, the norm and SigLIP's pooling head
are kept only so that a file loads and saves whole.

Source: Prismatic VLMs, arXiv 2402.07865, section 4.2; FiLM in OpenVLA-OFT, arXiv 2502.19645,
section 4.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interop.openvla.config import OpenVLAConfig, TowerConfig


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        return self.proj(heads.transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor of each channel."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm block; `ls1` and `ls2` are what each branch adds to the residual stream."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads)
        self.ls1 = LayerScale(dim) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, config.mlp_dim)
        self.ls2 = LayerScale(dim) if config.layer_scale else nn.Identity()

    def attend(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return x + self.ls1(self.attn(self.norm1(x)))

    def feed(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return x + self.ls2(self.mlp(self.norm2(x)))

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.feed(self.attend(x))


class FilmBlock(nn.Module):
    """A block whose stream is scaled and shifted by the instruction between its two branches."""

    def __init__(self, config: TowerConfig, text_dim: int):
        super().__init__()
        self.block = Block(config)
        self.scale = nn.Linear(text_dim, config.embed_dim)
        self.shift = nn.Linear(text_dim, config.embed_dim)

    def forward(
        self, x: Float[Tensor, "b t d"], instruction: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b t d"]:
        scale, shift = self.scale(instruction)[:, None], self.shift(instruction)[:, None]
        return self.block.feed(self.block.attend(x) * (1 + scale) + shift)


class PatchEmbed(nn.Module):
    """Pictures to a token a patch."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, stride=config.patch_size)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p d"]:
        return self.proj(x).flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """SigLIP's pooling head. OpenVLA reads patches and never calls it."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        dim = config.embed_dim
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, config.mlp_dim)


class Tower(nn.Module):
    """One vision transformer, up to its second to last block."""

    def __init__(self, config: TowerConfig, film_dim: int | None):
        super().__init__()
        self.config = config
        dim = config.embed_dim
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches, dim))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(
            Block(config) if film_dim is None else FilmBlock(config, film_dim)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        if config.attention_pool:
            self.attn_pool = AttentionPool(config)

    @property
    def used_blocks(self) -> nn.ModuleList:
        return self.blocks[:-1]

    def forward(
        self, image: Float[Tensor, "b 3 h w"], instruction: Float[Tensor, "b e"] | None = None
    ) -> Float[Tensor, "b p d"]:
        x = self.patch_embed(image) + self.pos_embed
        prefix = [getattr(self, name) for name in ("cls_token", "reg_token") if hasattr(self, name)]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
        for block in self.used_blocks:
            x = block(x) if instruction is None else block(x, instruction)
        return x[:, self.config.num_prefix :]


class VisionBackbone(nn.Module):
    """Both towers; features side by side, images one after the other."""

    def __init__(self, config: OpenVLAConfig):
        super().__init__()
        film_dim = config.text.hidden_size if config.film else None
        self.featurizer = Tower(config.towers[0], film_dim)
        self.fused_featurizer = Tower(config.towers[1], film_dim)

    def forward(
        self,
        pixel_values: Float[Tensor, "b c h w"],
        instruction: Float[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b p d"]:
        """Six channels an image (three a tower) -> 256 patches an image, both towers' features."""
        b, channels, h, w = pixel_values.shape
        images = channels // 6
        stacked = pixel_values.reshape(b * images, 6, h, w)
        if instruction is not None:
            instruction = instruction.repeat_interleave(images, dim=0)
        features = torch.cat(
            [
                self.featurizer(stacked[:, :3], instruction),
                self.fused_featurizer(stacked[:, 3:], instruction),
            ],
            dim=-1,
        )
        return features.reshape(b, images * features.shape[1], features.shape[2])


class Projector(nn.Module):
    """Patch features to the width of the language model."""

    def __init__(self, config: OpenVLAConfig):
        super().__init__()
        vision = sum(tower.embed_dim for tower in config.towers)
        text = config.text.hidden_size
        self.fc1 = nn.Linear(vision, 4 * vision)
        self.fc2 = nn.Linear(4 * vision, text)
        self.fc3 = nn.Linear(text, text)

    def forward(self, x: Float[Tensor, "b p d"]) -> Float[Tensor, "b p e"]:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
