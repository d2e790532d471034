"""Sizes of an OpenVLA: two vision towers, a Llama, action bins and action statistics.

`config.json` is read in the layout that published checkpoints have. Those name their towers only by
timm id; a model of any other size states them under `vision_towers`, a key of our own.

Source: OpenVLA, arXiv 2406.09246, section 3.1; Prismatic VLMs, arXiv 2402.07865.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from interop.openvla.processing import PROMPT, PROMPT_V01, square
from mistjax.files import read_json
from mistjax.untrusted import reading

DTYPES = ("bfloat16", "float16", "float32")
MOST = {"num_hidden_layers": 512, "depth": 512, "vocab_size": 2**24, "max_prompt_tokens": 4096}
FIXED = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "use_fused_vision_backbone": True,
    "image_resize_strategy": "resize-naive",
}
FIXED_TEXT = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "sliding_window": None,
}
"""What this port does in one way only, under the keys of `config.json` and its `text_config`."""


def check_sizes(config: Any, *, zero: tuple[str, ...] = ()) -> None:
    """ValueError where a whole number of a dataclass is none that a model has.

    Args:
        config: fields annotated `int` are looked at.
        zero: names of those that may be 0.
    """
    for field in dataclasses.fields(config):
        value, least = getattr(config, field.name), 0 if field.name in zero else 1
        most = MOST.get(field.name, 2**20)
        if field.type == "int" and (type(value) is not int or not least <= value <= most):
            raise ValueError(f"{field.name} is {value!r}: expected {least} to {most}.")


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

    def __post_init__(self):
        check_sizes(self, zero=("registers",))
        if self.embed_dim % self.num_heads or self.image_size % self.patch_size:
            raise ValueError(
                f"a tower has width {self.embed_dim} for {self.num_heads} heads, {self.image_size} "
                f"pixels for patches of {self.patch_size}: they do not divide."
            )
        numbers = [*self.mean, *self.std]
        if len(numbers) != 6 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise ValueError(
                f"a tower has mean {self.mean} and std {self.std}: expected three numbers each, "
                "std above 0."
            )

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

    def __post_init__(self):
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        check_sizes(self, zero=tokens)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}: {self.num_attention_heads} heads of an even "
                "size do not divide it."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}: it does not divide "
                f"{self.num_attention_heads} heads."
            )
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}: expected a number above 0.")
        if outside := [n for n in tokens if getattr(self, n) >= self.vocab_size]:
            raise ValueError(f"{outside} lie outside of the vocabulary, {self.vocab_size} tokens.")

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

    def __post_init__(self):
        for name, value in (("chunk", self.chunk), ("state_dim", self.state_dim or 1)):
            if type(value) is not int or not 1 <= value <= 10_000:
                raise ValueError(f"oft.{name} is {value!r}: expected a whole number from 1 on.")


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
        check_sizes(self, zero=("pad_to_multiple_of", "n_action_bins", "empty_token"))
        if not 0 <= self.n_action_bins <= self.action_vocab or self.n_action_bins == 1:
            raise ValueError(
                f"n_action_bins is {self.n_action_bins} and pad_to_multiple_of "
                f"{self.pad_to_multiple_of} in a vocabulary of {self.text.vocab_size}: no room."
            )
        if self.empty_token >= self.text.vocab_size:
            raise ValueError(
                f"empty_token {self.empty_token} is outside of a vocabulary of "
                f"{self.text.vocab_size}: give the id of the lone space."
            )
        if not isinstance(self.prompt, str) or self.prompt.count("{instruction}") != 1:
            raise ValueError(f"prompt is {self.prompt!r}: expected text around {{instruction}}.")
        if type(self.film) is not bool or not isinstance(self.norm_stats, Mapping):
            raise ValueError("film must be true or false, and norm_stats an object.")

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
            ValueError: unknown towers, quantised weights, or a kind of Llama that this port does
                not implement; names the key.
        """
        text = {} if raw.get("text_config") is None else raw["text_config"]
        for where, content, fixed in (("", raw, FIXED), ("text_config.", text, FIXED_TEXT)):
            for key, only in fixed.items():
                if content.get(key, only) not in (only, None):
                    raise ValueError(
                        f"{where}{key} is {content[key]!r}: this port does {only!r} only, as "
                        "OpenVLA's published models have it."
                    )
            if content.get("quantization_config"):
                raise ValueError(
                    f"{where}quantization_config is given: the weights are quantised, and this "
                    "port reads float32, bfloat16 and float16. Save the model without it."
                )
        names = {field.name for field in dataclasses.fields(LlamaDims)}
        dims = {name: value for name, value in text.items() if name in names and value is not None}
        dims |= _rope(text)
        if "num_attention_heads" in dims:
            dims.setdefault("num_key_value_heads", dims["num_attention_heads"])
        if text.get("pad_token_id") is None and "vocab_size" in dims:
            dims["pad_token_id"] = 0  # nothing reads it
        llama = LlamaDims(**dims)
        if text.get("head_dim") not in (None, llama.head_dim):
            raise ValueError(
                f"text_config.head_dim is {text['head_dim']}: this port's heads have hidden_size / "
                f"num_attention_heads = {llama.head_dim}."
            )
        vicuna = str(raw.get("llm_backbone_id")).startswith("vicuna")  # OpenVLA v0.1
        return cls(
            towers=_towers(raw),
            text=llama,
            norm_stats=dict(raw.get("norm_stats") or {}),
            pad_to_multiple_of=raw.get("pad_to_multiple_of", 64),
            n_action_bins=raw.get("n_action_bins", 256),
            empty_token=raw.get("empty_token", 29871),
            film=raw.get("film", False),
            prompt=raw.get("prompt", PROMPT_V01 if vicuna else PROMPT),
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
        """Reads `config.json` and, where there is one, `dataset_statistics.json` over it.

        Raises:
            FileNotFoundError: no `config.json`.
            ValueError: as `from_json`, or of something else than an OpenVLA; names the file.
        """
        file, statistics = Path(folder) / "config.json", Path(folder) / "dataset_statistics.json"
        raw = read_json(file)
        with reading(file, "an OpenVLA's configuration"):
            if raw.get("model_type") != "openvla":
                raise ValueError(f"model_type is {raw.get('model_type')!r}: expected 'openvla'.")
            config = cls.from_json(raw)
        if not statistics.exists():
            return config
        stats = dict(config.norm_stats) | read_json(statistics)
        return dataclasses.replace(config, norm_stats=stats)


def named_dtype(raw: Mapping[str, Any]) -> str | None:
    """The dtype that a `config.json` names: `torch_dtype`, or `dtype` since transformers 5.

    Returns:
        One of `DTYPES`; None where neither key has a value.

    Raises:
        ValueError: another dtype, or two that differ.
    """
    named = {key: raw[key] for key in ("torch_dtype", "dtype") if raw.get(key) is not None}
    values = {str(value).removeprefix("torch.") for value in named.values()}
    if not values <= set(DTYPES) or len(values) > 1:
        said = " and ".join(f"{key} {value!r}" for key, value in named.items())
        raise ValueError(f"{said}: expected one of {sorted(DTYPES)}.")
    return next(iter(values), None)


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta`, wherever a version of transformers writes it.

    Raises:
        ValueError: another rotary embedding than Llama-2's, or two bases that differ.
    """
    if text.get("partial_rotary_factor", 1) != 1:
        raise ValueError("text_config.partial_rotary_factor: this port turns each head whole.")
    bases = {"rope_theta": text.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):  # up to transformers 4, and since 5
        settings = text.get(key) or {}
        if not isinstance(settings, Mapping):
            raise ValueError(f"text_config.{key} is {settings!r}: expected an object.")
        kind = settings.get("rope_type", settings.get("type", "default" if settings else None))
        others = sorted(set(settings) - {"rope_type", "type", "rope_theta"})
        if kind not in (None, "default") or others:
            raise ValueError(
                f"text_config.{key} asks for {kind!r} with {others}: OpenVLA's Llama-2 has the "
                "default rotary embedding, and this port has no other."
            )
        bases[f"{key}.rope_theta"] = settings.get("rope_theta")
    given = {name: base for name, base in bases.items() if base is not None}
    if len(set(given.values())) > 1:
        raise ValueError(f"text_config has the bases {given}: expected one.")
    return {"rope_theta": next(iter(given.values()))} if given else {}


def _towers(raw: Mapping[str, Any]) -> tuple[TowerConfig, TowerConfig]:
    if "vision_towers" in raw:
        if not isinstance(raw["vision_towers"], list) or len(raw["vision_towers"]) != 2:
            raise ValueError("vision_towers are not two: expected DINOv2's and SigLIP's sizes.")
        first, second = (
            TowerConfig(**{**tower, "mean": tuple(tower["mean"]), "std": tuple(tower["std"])})
            for tower in raw["vision_towers"]
        )
        return first, second
    for key, only in (("image_sizes", [224, 224]), ("timm_override_act_layers", [None, None])):
        if raw.get(key, only) != only:
            raise ValueError(f"{key} is {raw[key]!r}: this port does {only} only.")
    ids = raw.get("timm_model_ids", list(PUBLISHED_TOWERS))
    if list(ids) != list(PUBLISHED_TOWERS):
        raise ValueError(
            f"timm_model_ids are {ids}: expected {list(PUBLISHED_TOWERS)}, or the sizes of both "
            "towers under 'vision_towers'."
        )
    first, second = (PUBLISHED_TOWERS[name] for name in ids)
    return first, second
