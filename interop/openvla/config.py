"""Sizes of an OpenVLA: two vision towers, a Llama, action bins and action statistics.

`config.json` is read in the layout that published checkpoints have. Those name their towers only by
timm id; a model of any other size states them under `vision_towers`, a key of our own.

Source: OpenVLA, arXiv 2406.09246, section 3.1; Prismatic VLMs, arXiv 2402.07865.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mistjax.interop.openvla.processing import PROMPT, square


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """One vision transformer.

    Attributes:
        embed_dim, depth, num_heads, mlp_dim: as everywhere; depth counts the last, unused block.
        mean, std: normalisation of RGB in [0, 1].
        registers: register tokens after the class token (DINOv2: 4).
        class_token: whether there is a class token.
        layer_scale: whether each branch is multiplied by a learned scale.
        attention_pool: whether the file holds SigLIP's pooling head (it is kept, and never run).
        image_size, patch_size: pixels.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    registers: int = 0
    class_token: bool = False
    layer_scale: bool = False
    attention_pool: bool = False
    image_size: int = 224
    patch_size: int = 14

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return self.registers + int(self.class_token)


def dinov2(embed_dim: int, depth: int, num_heads: int, mlp_dim: int, **other: Any) -> TowerConfig:
    """A DINOv2 tower with four registers, class token and layer scale."""
    return TowerConfig(
        *(embed_dim, depth, num_heads, mlp_dim),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        **{"registers": 4, "class_token": True, "layer_scale": True} | other,
    )


def siglip(embed_dim: int, depth: int, num_heads: int, mlp_dim: int, **other: Any) -> TowerConfig:
    """A SigLIP tower: patches only, with a pooling head that OpenVLA does not use."""
    return TowerConfig(
        *(embed_dim, depth, num_heads, mlp_dim),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        **{"attention_pool": True} | other,
    )


PUBLISHED_TOWERS = {
    "vit_large_patch14_reg4_dinov2.lvd142m": dinov2(1024, 24, 16, 4096),
    "vit_so400m_patch14_siglip_224": siglip(1152, 27, 16, 4304),
}


@dataclasses.dataclass(frozen=True)
class LlamaDims:
    """The language model. Defaults are Llama-2-7B as the published conversion built it.

    That conversion started from `LlamaConfig()` and not from Meta's configuration, hence
    `rms_norm_eps` 1e-6; 1e-5 changes a logit by less than 1e-4 and is easy to miss.
    """

    vocab_size: int = 32064
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 32000

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class OFTConfig:
    """What OpenVLA-OFT adds: a head for chunks of actions, and a token for the robot's state.

    Attributes:
        chunk: actions of one inference (LIBERO 8, ALOHA 25, Bridge 5).
        state_dim: width of the robot's state; None for a policy that does not read it.
    """

    chunk: int
    state_dim: int | None = None


@dataclasses.dataclass(frozen=True)
class OpenVLAConfig:
    """Everything but the weights.

    Attributes:
        towers: DINOv2 and SigLIP, in the order of their channels.
        text: the language model.
        norm_stats: dataset name -> {"action": {"q01", "q99", "mask", ...}}.
        pad_to_multiple_of: the vocabulary was padded to a multiple of this after the tokenizer's
            own words; action ids count down from the unpadded size.
        n_action_bins: edges between -1 and 1.
        empty_token: the token that every answer begins with; Llama-2's lone space.
        film: whether the towers are modulated by the instruction (OpenVLA-OFT+).
        prompt: what is asked, around `{instruction}`.
        max_prompt_tokens: length that prompts are padded to, BOS included.
        oft: of an OpenVLA-OFT; None decodes token by token. Published folders do not say it: the
            last three keys are our own.
    """

    towers: tuple[TowerConfig, TowerConfig]
    text: LlamaDims
    norm_stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pad_to_multiple_of: int = 64
    n_action_bins: int = 256
    empty_token: int = 29871
    film: bool = False
    prompt: str = PROMPT
    max_prompt_tokens: int = 64
    oft: OFTConfig | None = None

    def __post_init__(self):
        patches = {tower.num_patches for tower in self.towers}
        if len(patches) != 1:
            raise ValueError(f"the two towers give {sorted(patches)} patches: they must agree.")

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.towers[0].num_patches

    def resize(self, image: np.ndarray) -> np.ndarray:
        """A picture at the towers' size."""
        return square(image, self.towers[0].image_size)

    @property
    def action_vocab(self) -> int:
        """Vocabulary without its padding: action ids lie just below."""
        return self.text.vocab_size - self.pad_to_multiple_of

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> OpenVLAConfig:
        """Reads the content of a `config.json`.

        Raises:
            ValueError: unknown towers, or a kind of Llama that this port does not implement.
        """
        text = raw.get("text_config", {})
        if (
            text.get("rope_scaling")
            or text.get("attention_bias")
            or text.get("tie_word_embeddings")
        ):
            raise ValueError(
                "text_config asks for rope_scaling, attention_bias or tie_word_embeddings: "
                "OpenVLA's Llama-2 has none of them and this port supports none."
            )
        names = {field.name for field in dataclasses.fields(LlamaDims)}
        dims = {name: value for name, value in text.items() if name in names and value is not None}
        if "num_attention_heads" in dims:
            dims.setdefault("num_key_value_heads", dims["num_attention_heads"])
        return cls(
            towers=_towers(raw),
            text=LlamaDims(**dims),
            norm_stats=dict(raw.get("norm_stats") or {}),
            pad_to_multiple_of=raw.get("pad_to_multiple_of", 64),
            n_action_bins=raw.get("n_action_bins", 256),
            empty_token=raw.get("empty_token", 29871),
            film=raw.get("film", False),
            prompt=raw.get("prompt", PROMPT),
            max_prompt_tokens=raw.get("max_prompt_tokens", 64),
            oft=OFTConfig(**raw["oft"]) if raw.get("oft") else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The content of a `config.json` that `from_json` reads back."""
        return {
            "model_type": "openvla",
            "architectures": ["OpenVLAForActionPrediction"],
            "arch_specifier": "no-align+fused-gelu-mlp",
            "use_fused_vision_backbone": True,
            "vision_towers": [dataclasses.asdict(tower) for tower in self.towers],
            "text_config": {"model_type": "llama", **dataclasses.asdict(self.text)},
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "n_action_bins": self.n_action_bins,
            "empty_token": self.empty_token,
            "film": self.film,
            "prompt": self.prompt,
            "max_prompt_tokens": self.max_prompt_tokens,
            "oft": self.oft and dataclasses.asdict(self.oft),
            "norm_stats": dict(self.norm_stats),
        }

    @classmethod
    def load(cls, folder: str | Path) -> OpenVLAConfig:
        """Reads `config.json` and, where there is one, `dataset_statistics.json` over it."""
        folder = Path(folder)
        config = cls.from_json(json.loads((folder / "config.json").read_text()))
        statistics = folder / "dataset_statistics.json"
        if not statistics.exists():
            return config
        stats = dict(config.norm_stats) | json.loads(statistics.read_text())
        return dataclasses.replace(config, norm_stats=stats)


def _towers(raw: Mapping[str, Any]) -> tuple[TowerConfig, TowerConfig]:
    if "vision_towers" in raw:
        first, second = (
            TowerConfig(**{**tower, "mean": tuple(tower["mean"]), "std": tuple(tower["std"])})
            for tower in raw["vision_towers"]
        )
        return first, second
    ids = raw.get("timm_model_ids", list(PUBLISHED_TOWERS))
    if list(ids) != list(PUBLISHED_TOWERS):
        raise ValueError(
            f"timm_model_ids are {ids}: expected {list(PUBLISHED_TOWERS)}, or the sizes of both "
            "towers under 'vision_towers'."
        )
    first, second = (PUBLISHED_TOWERS[name] for name in ids)
    return first, second
