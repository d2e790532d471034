"""The small SmolVLA of the board experiments: its sizes, its words, and its loss.

A SmolVLA is a VLM (its backbone, a folder of its own) and an action expert that looks at the VLM's
keys and values. LeRobot's own modules are trained as SmolVLA is: the VLM stays as it is, the expert
and the projections of state and actions learn. Several draws of noise share one pass of the VLM.

Source: SmolVLA, arXiv 2506.01844.
"""

from __future__ import annotations

import interop.lerobot  # noqa: F401 (goes before lerobot and transformers, see there)

# isort: split
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy, make_att_2d_masks
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace, Split
from tokenizers.pre_tokenizers import Sequence as Steps
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

PROMPT_LEN, HORIZON, SIDE = 20, 8, 64
SPECIAL = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def write_backbone(
    folder: Path,
    words: Sequence[str],
    *,
    width: int = 96,
    layers: int = 4,
    vision_layers: int = 2,
    patch: int = 16,
    side: int = SIDE,
) -> None:
    """Writes what SmolVLA builds its VLM from: sizes, and a processor with one token a word.

    Args:
        folder: created when needed.
        words: pieces such as `▁stone`, in their order; `<pad>`, `</s>`, `<s>`, `<unk>` first.
        width, layers, vision_layers: of both towers.
        patch, side: of a picture, in pixels.
    """
    names = {word: i for i, word in enumerate([*words, *SPECIAL.values()])}
    table = Tokenizer(WordLevel(names, unk_token="<unk>"))
    table.pre_tokenizer = Steps(
        [Split(Regex("\n"), "isolated"), Metaspace(prepend_scheme="always")]
    )
    begin = [("<s>", names["<s>"])]
    table.post_processor = TemplateProcessing(single="<s> $A", special_tokens=begin)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=table,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        extra_special_tokens=SPECIAL,
    )
    sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": 256}
    SmolVLMConfig(
        vision_config={
            **sizes,
            "num_hidden_layers": vision_layers,
            # a patch more a side than there is: its rounding then tells all positions apart
            "image_size": side + patch,
            "patch_size": patch,
        },
        text_config={
            **sizes,
            "model_type": "llama",
            "num_hidden_layers": layers,
            "num_key_value_heads": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "head_dim": width // 4,
            "vocab_size": len(names),
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
        scale_factor=1,
        image_token_id=names[SPECIAL["image_token"]],
    ).save_pretrained(folder)
    size = {"longest_edge": side}
    pictures = {"size": size, "max_image_size": size, "do_image_splitting": False}
    videos = SmolVLMVideoProcessor(size=size, max_image_size=size, num_frames=1, fps=1)
    images = SmolVLMImageProcessor(**pictures)
    SmolVLMProcessor(images, tokenizer, videos, image_seq_len=1).save_pretrained(folder)


def smolvla_config(
    backbone: Path,
    cameras: Sequence[str],
    *,
    layers: int = 4,
    side: int = SIDE,
    state: int = 5,
    actions: int = 4,
) -> SmolVLAConfig:
    """A SmolVLA on the board's robot; 1 M parameters with the backbone's own sizes."""
    picture = PolicyFeature(FeatureType.VISUAL, (3, side, side))
    return SmolVLAConfig(
        input_features={
            **dict.fromkeys(cameras, picture),
            "observation.state": PolicyFeature(FeatureType.STATE, (state,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (actions,))},
        device="cpu",
        chunk_size=HORIZON,
        n_action_steps=4,
        max_state_dim=8,
        max_action_dim=8,
        resize_imgs_with_padding=(side, side),
        tokenizer_max_length=PROMPT_LEN,
        num_steps=10,
        vlm_model_name=str(backbone),
        load_vlm_weights=False,
        num_vlm_layers=layers,
        expert_width_multiplier=2 / 3,
    )


def smolvla_loss(
    policy: SmolVLAPolicy, batch: dict[str, Tensor], samples: int, noise: torch.Generator
) -> Tensor:
    """Flow matching.

    Args:
        policy: LeRobot's.
        batch: normalised; `images` [B,cameras,3,h,w] in [-1, 1], `words`, `state`, `actions` and
            `meant`.
        samples: noise draws of each example, sharing one pass of the VLM.
        noise: draws noise and times.
    """
    flow: Any = policy.model
    two, words = flow.vlm_with_expert, batch["words"].long()
    pictures = list(batch["images"].unbind(1))
    masks = [torch.ones(len(words), dtype=torch.bool)] * len(pictures)
    state = F.pad(batch["state"], (0, policy.config.max_state_dim - batch["state"].shape[-1]))
    embeds, valid, blocks = flow.embed_prefix(pictures, masks, words, words != 0, state=state)
    _, cache = two.forward(
        attention_mask=make_att_2d_masks(valid, blocks),
        position_ids=torch.cumsum(valid, dim=1) - 1,
        inputs_embeds=[embeds, None],
        use_cache=True,
        fill_kv_cache=True,
    )
    cache = {
        layer: {name: value.repeat_interleave(samples, 0) for name, value in pair.items()}
        for layer, pair in cache.items()
    }
    actions = batch["actions"].repeat_interleave(samples, 0)
    meant = batch["meant"].repeat_interleave(samples, 0)
    actions = F.pad(actions, (0, policy.config.max_action_dim - actions.shape[-1]))
    eps = torch.randn(actions.shape, generator=noise)
    t = torch.rand(len(actions), generator=noise) ** (1 / 1.5) * 0.999 + 0.001  # Beta(1.5, 1)
    x_t = t[:, None, None] * eps + (1 - t[:, None, None]) * actions
    velocity = flow.denoise_step(valid.repeat_interleave(samples, 0), cache, x_t, t)
    error = (velocity - (eps - actions)).square().mean(-1)
    return (error * meant).sum() / meant.sum()
