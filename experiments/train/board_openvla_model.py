"""The tiny OpenVLA of the board experiments: its sizes, and its co-training loss.

Two ways out of one network. `oft` is OpenVLA-OFT: both cameras and the robot's state in, a chunk
of 4 actions out in one pass, L1 loss. `token` is OpenVLA: the front camera alone in, one action
out as 4 tokens, cross-entropy. Both add what the board's pi0 adds (`train.board_model`): a next-
token loss on short motion captions, so that the language head keeps a meaning in words, and a
regression of where the stones and the target are, which teaches a small network to look. The
regression head does not ship.

Source: OpenVLA, arXiv 2406.09246; OpenVLA-OFT, arXiv 2502.19645.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.train.board_data import LAYOUT_UNIT, board_tokenizer
from experiments.train.board_model import CAPTION_LEN
from experiments.train.board_openvla_data import CAMERAS
from interop.openvla import actions, generation, oft
from interop.openvla.config import LlamaDims, OFTConfig, OpenVLAConfig, dinov2, siglip
from interop.openvla.generation import Embedded, Inputs
from interop.openvla.hooks import Hooks, token_layouts
from interop.openvla.model import OpenVLA
from interop.taps import last_valid
from mistjax.models.tokenizers import BOS, EOS, PAD, PromptTokenizer

PROMPT_LEN = 16
Decoding = Literal["oft", "token"]


def openvla_tokenizer() -> PromptTokenizer:
    """The board's words; the longest instruction has 14 of them."""
    return dataclasses.replace(board_tokenizer(), max_tokens=PROMPT_LEN)


def openvla_config(tokenizer: PromptTokenizer, decoding: Decoding) -> OpenVLAConfig:
    """1 M parameters: two towers of 64 at 16 patches a picture, a Llama of width 96."""
    tower = {"image_size": 64, "patch_size": 16}
    words, bins = tokenizer.vocab_size, 256 if decoding == "token" else 0
    return OpenVLAConfig(
        towers=(
            dinov2(64, 3, 4, 192, **tower),
            siglip(64, 3, 4, 192, attention_pool=False, **tower),
        ),
        text=LlamaDims(
            vocab_size=words + bins,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        ),
        pad_to_multiple_of=0,
        n_action_bins=bins,
        empty_token=tokenizer.encode("\n")[-1],
        prompt="{instruction}",
        max_prompt_tokens=PROMPT_LEN,
        oft=OFTConfig(chunk=4, state_dim=5) if decoding == "oft" else None,
    )


class BoardOpenVLA(nn.Module):
    """The network, what OFT adds to it, and the regression head of the training."""

    def __init__(self, config: OpenVLAConfig):
        super().__init__()
        width = config.text.hidden_size
        self.model = OpenVLA(config)
        self.parts = None if config.oft is None else oft.OFTParts.empty(config, action_dim=4)
        self.head = self.parts and self.parts.head
        self.proprio = self.parts and self.parts.proprio
        self.layout = nn.Linear(width, 6)
        self.apply(_initialise)
        nn.init.zeros_(self.layout.weight)


def _initialise(module: nn.Module) -> None:
    """Unit-variance signals everywhere, which a network of this width needs to learn quickly."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight)
        module.weight.data[module.padding_idx].zero_()
    for name in ("pos_embed", "cls_token", "reg_token"):
        if hasattr(module, name):
            nn.init.normal_(getattr(module, name), std=0.5)


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Of the terms beside the actions' own; captions are read for one example in `every`."""

    layout: float = 1.0
    caption: float = 0.1
    every: int = 8


def board_loss(
    net: BoardOpenVLA, batch: dict[str, Tensor], weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss and its parts; positions in mm, `action` as L1 (oft) or nats (token)."""
    model, config = net.model, net.model.config
    cameras = CAMERAS if net.parts else CAMERAS[:1]
    inputs = _inputs(model, batch, cameras)
    layouts = token_layouts(config.num_patches, cameras, PROMPT_LEN, int(net.parts is not None))
    hooks = Hooks(model, layouts)
    if net.parts is not None:
        embedded = oft.embed(model, net.parts, inputs, hooks)
        hidden = oft.hidden_states(model, net.parts, embedded, hooks)
        chunk = net.parts.read(hidden, embedded)
        action = F.l1_loss(chunk, batch["actions"][:, : net.parts.chunk])
    else:
        embedded = generation.embed(model, inputs, hooks)
        tokens = _action_tokens(config, batch["actions"][:, 0])
        hidden = _answer(model, embedded, tokens)
        logits = model.language_model.lm_head(hidden[:, embedded.valid.shape[1] :][:, :4])
        action = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    start, stop = layouts["vlm"].select("text")
    words = inputs.text_mask[:, 1:, None]
    pooled = (hidden[:, start:stop] * words).sum(1) / words.sum(1)
    layout = (net.layout(pooled) - batch["layout"]).square().mean(0)

    some = slice(None, None, weights.every)
    target = batch["caption"][some].long()
    part = Embedded(embedded.embeds[some], embedded.valid[some])
    states = _answer(model, part, target)[:, embedded.valid.shape[1] :][:, :CAPTION_LEN]
    logits = model.language_model.lm_head(states)
    caption = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)

    total = action + weights.layout * layout.mean() + weights.caption * caption
    stone, cell, _ = 1000 * LAYOUT_UNIT * layout.detach().view(3, 2).mean(1).sqrt()
    parts = {"action": action, "caption": caption, "stone_mm": stone, "cell_mm": cell}
    return total, {name: value.detach() for name, value in parts.items()}


def _inputs(model: OpenVLA, batch: dict[str, Tensor], cameras: Sequence[str]) -> Inputs:
    unit = torch.stack([batch[name] for name in cameras], dim=1).float() / 255
    towers = [
        (unit - unit.new_tensor(t.mean)) / unit.new_tensor(t.std) for t in model.config.towers
    ]
    prompt = batch["prompt"]
    return Inputs(
        model.embed_tokens(prompt.long()),
        prompt != PAD,
        torch.cat(towers, dim=-1).permute(0, 1, 4, 2, 3).flatten(1, 2),
        torch.ones(len(prompt), len(cameras), dtype=torch.bool),
        batch["state"],
    )


def _answer(model: OpenVLA, embedded: Embedded, tokens: Tensor) -> Tensor:
    """Hidden states of prefix, empty token and answer, each predicting the next token."""
    start = torch.full_like(tokens[:, :1], model.config.empty_token)
    answer = model.embed_tokens(torch.cat([start, tokens[:, :-1]], dim=1))
    after = last_valid(embedded.valid)[:, None] + torch.arange(1, tokens.shape[1] + 1)
    return model.hidden(
        torch.cat([embedded.embeds, answer], dim=1),
        torch.cat([embedded.valid, torch.ones_like(tokens, dtype=torch.bool)], dim=1),
        torch.cat([embedded.positions, after], dim=1),
    )


def _action_tokens(config: OpenVLAConfig, chosen: Tensor) -> Tensor:
    ids = actions.encode(chosen.numpy(), config.action_vocab, config.n_action_bins)
    return torch.from_numpy(ids).long()
