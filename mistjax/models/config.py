"""Sizes of the pi0 family, with the named variants that openpi ships and a `tiny` one for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

IMAGE_KEYS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
FAST_IMAGE_KEYS = ("base_0_rgb", "base_1_rgb", "wrist_0_rgb")


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """A SigLIP vision tower: square patches, pre-norm encoder, no pooling."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: tuple[int, int] = (14, 14)

    def num_tokens(self, image_size: int) -> int:
        """Patches of one square image."""
        return (image_size // self.patch_size[0]) * (image_size // self.patch_size[1])


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """One Gemma expert. Experts that run together share depth, heads, kv heads and head_dim."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


SO400M_14 = SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16)
GEMMA_2B = GemmaConfig(2048, 18, 16_384, num_heads=8, num_kv_heads=1, head_dim=256)
GEMMA_300M = GemmaConfig(1024, 18, 4096, num_heads=8, num_kv_heads=1, head_dim=256)


# Not `Self`: the run-time checks of the tests decorate methods apart from their class.
_Config = TypeVar("_Config", bound="_PrefixConfig")


class _PrefixConfig:
    """What configurations of models with a prefix of cameras and a prompt have in common."""

    siglip: SiglipConfig
    image_size: int
    image_keys: tuple[str, ...]
    max_token_len: int

    @property
    def num_image_tokens(self) -> int:
        """Tokens of all cameras together."""
        return len(self.image_keys) * self.siglip.num_tokens(self.image_size)

    @property
    def prefix_len(self) -> int:
        return self.num_image_tokens + self.max_token_len

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls: type[_Config], data: Mapping[str, Any]) -> _Config:
        """The inverse of `to_json`; ValueError names a key that is not a field."""
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if surplus := sorted(set(data) - known):
            raise ValueError(f"model config has unknown keys {surplus}; known: {sorted(known)}.")
        nested = {
            "siglip": lambda v: SiglipConfig(**{**v, "patch_size": tuple(v["patch_size"])}),
            "vlm": lambda v: GemmaConfig(**v),
            "action_expert": lambda v: GemmaConfig(**v),
            "image_keys": tuple,
        }
        return cls(**{k: nested.get(k, lambda v: v)(v) for k, v in data.items()})


@dataclasses.dataclass(frozen=True)
class Pi0Config(_PrefixConfig):
    """pi0 (`pi05=False`) or pi0.5 (`pi05=True`).

    Attributes:
        action_dim: model width of states and actions; narrower robots are padded with zeros.
        max_token_len: prompt tokens after padding.
        dtype: compute dtype of both Gemma experts and the vision encoder.
        remat: recompute each layer in the backward pass (saves memory, costs a forward pass).
        num_steps: Euler steps of the sampler.
    """

    siglip: SiglipConfig = SO400M_14
    vlm: GemmaConfig = GEMMA_2B
    action_expert: GemmaConfig = GEMMA_300M
    vocab_size: int = 257_152
    image_size: int = 224
    image_keys: tuple[str, ...] = IMAGE_KEYS
    action_dim: int = 32
    action_horizon: int = 50
    max_token_len: int = 48
    num_steps: int = 10
    pi05: bool = False
    dtype: str = "bfloat16"
    remat: bool = True

    def __post_init__(self):
        shared = ("depth", "num_heads", "num_kv_heads", "head_dim")
        differ = [n for n in shared if getattr(self.vlm, n) != getattr(self.action_expert, n)]
        if differ:
            raise ValueError(
                f"vlm and action_expert must agree on {shared}; they differ in {differ}."
            )

    @property
    def experts(self) -> tuple[GemmaConfig, ...]:
        """The Gemma stacks that run together, VLM first."""
        return self.vlm, self.action_expert


@dataclasses.dataclass(frozen=True)
class FastConfig(_PrefixConfig):
    """pi0-FAST: the VLM itself writes the actions as tokens.

    Attributes:
        action_dim, action_horizon: shape of the chunk that the action tokens stand for.
        max_token_len: prompt tokens after padding, without the written action.
        max_decoding_steps: most tokens of one action chunk.
        decoding_gap: positions left free between the prompt and the decoded tokens. openpi's
            sampler leaves 1, its training 0: a policy trained here decodes as it was trained.
        whole_actions: write only tokens with which the action can still become a whole chunk. False
            is openpi: any token, and an action that cannot be decoded now and then.
        dtype, remat: as in `Pi0Config`.
    """

    siglip: SiglipConfig = SO400M_14
    vlm: GemmaConfig = GEMMA_2B
    vocab_size: int = 257_152
    image_size: int = 224
    image_keys: tuple[str, ...] = FAST_IMAGE_KEYS
    action_dim: int = 32
    action_horizon: int = 32
    max_token_len: int = 250
    max_decoding_steps: int = 256
    decoding_gap: int = 1
    whole_actions: bool = False
    dtype: str = "bfloat16"
    remat: bool = True

    @property
    def experts(self) -> tuple[GemmaConfig, ...]:
        """The one Gemma stack."""
        return (self.vlm,)

    @property
    def num_steps(self) -> int:
        """Decoded tokens of one inference."""
        return self.max_decoding_steps


PI0 = Pi0Config()
PI05 = Pi0Config(pi05=True, max_token_len=200)
TINY = Pi0Config(
    siglip=SiglipConfig(width=32, depth=2, mlp_dim=64, num_heads=4, patch_size=(8, 8)),
    vlm=GemmaConfig(32, 3, 64, num_heads=4, num_kv_heads=1, head_dim=8),
    action_expert=GemmaConfig(16, 3, 32, num_heads=4, num_kv_heads=1, head_dim=8),
    vocab_size=96,
    image_size=16,
    image_keys=IMAGE_KEYS[:2],
    action_dim=5,
    action_horizon=4,
    max_token_len=8,
    num_steps=3,
    dtype="float32",
    remat=False,
)
TINY_FAST = FastConfig(
    siglip=TINY.siglip,
    vlm=TINY.vlm,
    vocab_size=640,
    image_size=TINY.image_size,
    image_keys=TINY.image_keys,
    action_dim=TINY.action_dim,
    action_horizon=TINY.action_horizon,
    max_token_len=TINY.max_token_len,
    max_decoding_steps=4,
    dtype="float32",
    remat=False,
)
