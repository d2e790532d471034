"""The small SmolVLA of the board experiments: its sizes, its words, and its co-training loss.

A SmolVLA is a VLM (its backbone, a folder of its own) and an action expert that looks at the VLM's
keys and values. Here all of it is trained from scratch, in LeRobot's own modules. The loss adds to
flow matching a regression of where the stone and the cell are, from the pooled prompt states, which
teaches a small network to look; its head does not ship.

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
from lerobot.policies.smolvla.modeling_smolvla import (
    SmolVLAPolicy,
    make_att_2d_masks,
)
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace, Split
from tokenizers.pre_tokenizers import Sequence as Steps
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from interop.lerobot.smolvla import patch_positions

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
    vision_layers: int = 3,
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
            "image_size": side,
            "patch_size": patch,
        },
        text_config={
            **sizes,
            "model_type": "llama",
            "num_hidden_layers": layers,
            "num_key_value_heads": 4,
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
    """A SmolVLA on the board's robot; 1.1 M parameters with the backbone's own sizes."""
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
        num_steps=5,
        vlm_model_name=str(backbone),
        load_vlm_weights=False,
        freeze_vision_encoder=False,
        train_expert_only=False,
        num_vlm_layers=layers,
        expert_width_multiplier=2 / 3,
    )


class BoardSmolVLA(nn.Module):
    """LeRobot's policy and the regression head of the training."""

    def __init__(self, config: SmolVLAConfig):
        super().__init__()
        self.policy = SmolVLAPolicy(config).eval()  # there is no dropout in it
        flow = self.policy.model
        self.layout = nn.Linear(flow.vlm_with_expert.config.text_config.hidden_size, 4)
        self.apply(_initialise)
        vlm = flow.vlm_with_expert.get_vlm_model()
        width = flow.vlm_with_expert.config.text_config.hidden_size
        with torch.no_grad():  # SmolVLA scales both by the root of the width
            vlm.connector.modality_projection.proj.weight /= width**0.5
            vlm.text_model.embed_tokens.weight /= width**0.5
            self.layout.weight.zero_()
        self.register_buffer("places", patch_positions(vlm.vision_model), persistent=False)

    @property
    def flow(self) -> Any:
        """LeRobot's network."""
        return self.policy.model

    def loss(
        self, batch: dict[str, Tensor], samples: int, layout_weight: float, noise: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its parts; positions in mm.

        Args:
            batch: normalised; `images` [B,cameras,3,h,w] in [-1, 1], `words`, `state`, `actions`,
                `meant` and `layout`.
            samples: noise draws of each example, sharing one prefix.
            layout_weight: of the regression.
            noise: draws noise and times.
        """
        words = batch["words"].long()
        real = words != 0
        cache, valid, hidden = self._prefix(batch["images"], words, real, batch["state"])
        cache = {
            layer: {name: value.repeat_interleave(samples, 0) for name, value in pair.items()}
            for layer, pair in cache.items()
        }
        actions, meant = (
            batch[name].repeat_interleave(samples, 0) for name in ("actions", "meant")
        )
        padded = F.pad(actions, (0, self.policy.config.max_action_dim - actions.shape[-1]))
        eps = torch.randn(padded.shape, generator=noise)
        uniform = torch.rand(len(padded), generator=noise)
        t = uniform ** (1 / 1.5) * 0.999 + 0.001  # Beta(1.5, 1) by its inverse
        x_t = t[:, None, None] * eps + (1 - t[:, None, None]) * padded
        velocity = self.flow.denoise_step(valid.repeat_interleave(samples, 0), cache, x_t, t)
        error = (velocity - (eps - padded)).square().mean(-1)
        flow = (error * meant).sum() / meant.sum()

        start = hidden.shape[1] - 1 - words.shape[1]
        pooled = (hidden[:, start:-1] * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        known = batch["layout"].isfinite()
        off = (self.layout(pooled) - batch["layout"].nan_to_num()).square() * known
        layout = off.sum(0) / known.sum(0).clamp_min(1)
        stone, cell = 100 * layout.detach().view(2, 2).mean(1).sqrt()
        parts = {"flow": flow.detach(), "stone_mm": stone, "cell_mm": cell}
        return flow + layout_weight * layout.mean(), parts

    def _prefix(self, images: Tensor, words: Tensor, real: Tensor, state: Tensor):
        """Keys and values, validity and states of [pictures][words][state]: LeRobot's own pass
        without its loop over pictures, all of which are whole."""
        flow, two = self.flow, self.flow.vlm_with_expert
        vlm = two.get_vlm_model()
        rows = len(images)
        patches = vlm.vision_model.embeddings.patch_embedding(images.flatten(0, 1))
        at = vlm.vision_model.embeddings.position_embedding(self.places)
        seen = vlm.vision_model.encoder(inputs_embeds=patches.flatten(2).transpose(1, 2) + at)
        seen = vlm.connector(vlm.vision_model.post_layernorm(seen.last_hidden_state))
        scale = seen.shape[-1] ** 0.5
        state = F.pad(state, (0, self.policy.config.max_state_dim - state.shape[-1]))
        embeds = torch.cat(
            [
                seen.reshape(rows, -1, seen.shape[-1]) * scale,
                two.embed_language_tokens(words) * scale,
                flow.state_proj(state)[:, None],
            ],
            dim=1,
        )
        pictures = embeds.shape[1] - 1 - words.shape[1]
        valid = F.pad(F.pad(real, (pictures, 0), value=True), (0, 1), value=True)
        blocks = torch.zeros_like(valid)
        blocks[:, -1] = True
        (hidden, _), cache = two.forward(
            attention_mask=make_att_2d_masks(valid, blocks),
            position_ids=torch.cumsum(valid, dim=1) - 1,
            inputs_embeds=[embeds, None],
            use_cache=True,
            fill_kv_cache=True,
        )
        return cache, valid, hidden


def _initialise(module: nn.Module) -> None:
    """Unit-variance signals everywhere, which a network of this width needs to learn quickly."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
