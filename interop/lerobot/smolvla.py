"""Where SmolVLA's layers are, and where values pass inside of them.

LeRobot writes the computation of the VLM's and the expert's blocks out in one function, so the
blocks themselves are never called: only their projections, norms and MLPs are. No module returns
the residual stream there. It is read as what enters `post_attention_layernorm` plus what `mlp`
returns, and changed through what `mlp` returns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor, nn

from mistjax.hooks.sites import TokenLayout
from mistjax.policies.protocol import StackSpec


@dataclasses.dataclass(frozen=True)
class Point:
    """A submodule of a block, and whether its input or its output is the site.

    Attributes:
        module: of a block.
        is_input: the first argument, not the result.
        before: for a residual stream that no module returns: the module that gets it before
            `module`'s result is added.
    """

    module: Callable[[Any], nn.Module]
    is_input: bool = False
    before: Callable[[Any], nn.Module] | None = None


TOWER_POINTS = {
    "resid": Point(lambda block: block),
    "attn_heads": Point(lambda block: block.self_attn.out_proj, is_input=True),
    "attn_out": Point(lambda block: block.self_attn.out_proj),
    "mlp_neurons": Point(lambda block: block.mlp.fc2, is_input=True),
    "mlp_out": Point(lambda block: block.mlp),
}

# In this order: an edit of the residual stream sees the edits of what the MLP adds.
LLAMA_POINTS = {
    "attn_heads": Point(lambda block: block.self_attn.o_proj, is_input=True),
    "attn_out": Point(lambda block: block.self_attn.o_proj),
    "mlp_neurons": Point(lambda block: block.mlp.down_proj, is_input=True),
    "mlp_out": Point(lambda block: block.mlp),
    "resid": Point(lambda block: block.mlp, before=lambda block: block.post_attention_layernorm),
}


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers of one part of the network; `points` by the names of `mistjax.hooks.sites`."""

    blocks: Sequence[nn.Module]
    points: Mapping[str, Point]
    spec: StackSpec


@dataclasses.dataclass(frozen=True)
class Network:
    """What hooks need to know of a SmolVLA.

    Attributes:
        stacks: `vision`, `vlm` and `action`.
        camera_start, step_start: modules that are called once for each camera and each flow step,
            before any block.
        embedding: of the words.
        words: most tokens of a prompt.
    """

    stacks: Mapping[str, Stack]
    camera_start: nn.Module
    step_start: nn.Module
    embedding: nn.Module
    words: int

    @classmethod
    def of(cls, policy: SmolVLAPolicy, cameras: Sequence[str]) -> Network:
        """Of a policy with these cameras, in the order of their pictures."""
        flow: Any = policy.model
        config, two = policy.config, flow.vlm_with_expert
        vlm = two.get_vlm_model()
        tower, text, expert = vlm.vision_model, vlm.text_model, two.lm_expert
        height, width = _picture_size(config)
        side = tower.config.patch_size
        patches = (height // side) * (width // side)
        lengths = patches, patches // vlm.connector.scale_factor**2
        layouts = _layouts(config, cameras, *lengths)
        v = tower.config
        towers = StackSpec(
            len(tower.encoder.layers),
            v.hidden_size,
            v.intermediate_size,
            v.num_attention_heads,
            v.hidden_size // v.num_attention_heads,
            layouts["vision"],
        )
        stacks = {"vision": Stack(list(tower.encoder.layers), TOWER_POINTS, towers)}
        for name, llama in (("vlm", text), ("action", expert)):
            c = llama.config
            spec = StackSpec(
                len(llama.layers),
                c.hidden_size,
                c.intermediate_size,
                c.num_attention_heads,
                c.head_dim,
                layouts[name],
            )
            stacks[name] = Stack(list(llama.layers), LLAMA_POINTS, spec)
        words = config.tokenizer_max_length
        return cls(stacks, tower, flow.action_in_proj, text.get_input_embeddings(), words)


def patch_positions(policy: SmolVLAPolicy) -> Int[Tensor, " patches"]:
    """Which position embedding the tower gives each patch of a picture: not the same in every
    release of transformers.
    """
    flow: Any = policy.model
    tower = flow.vlm_with_expert.get_vlm_model().vision_model
    found: list[Tensor] = []
    hook = tower.embeddings.position_embedding.register_forward_pre_hook(
        lambda _, args: found.append(args[0])
    )
    weight = tower.embeddings.patch_embedding.weight
    with hook, torch.no_grad():
        tower(weight.new_zeros(1, 3, *_picture_size(policy.config)))
    return found[0][0]


def pixels(policy: SmolVLAPolicy) -> tuple[int, int]:
    """Height and width of one image token."""
    flow: Any = policy.model
    vlm = flow.vlm_with_expert.get_vlm_model()
    side = vlm.vision_model.config.patch_size * vlm.connector.scale_factor
    return side, side


def _picture_size(config: Any) -> tuple[int, int]:
    """Pixels of a picture as the tower sees it."""
    if config.resize_imgs_with_padding is not None:
        width, height = config.resize_imgs_with_padding
        return height, width
    sizes = {feature.shape[1:] for feature in config.image_features.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"the policy's cameras have pictures of {sorted(sizes)} and are not resized: expected "
            "one size, or `resize_imgs_with_padding`."
        )
    return sizes.pop()


def _layouts(
    config: Any, cameras: Sequence[str], patches: int, tokens: int
) -> dict[str, TokenLayout]:
    """Names of token positions: `patches` of a picture in the tower, `tokens` in the VLM.

    The VLM reads [camera][camera]...[words][state]; LeRobot's marks around a camera's tokens, where
    it has them, belong to `image` and to no camera.
    """
    before, after = (2, 1) if config.add_image_special_tokens else (0, 0)
    each = before + tokens + after
    tower = {name: (i * patches, (i + 1) * patches) for i, name in enumerate(cameras)}
    prefix = {
        name: (i * each + before, i * each + before + tokens) for i, name in enumerate(cameras)
    }
    image, words = each * len(cameras), config.tokenizer_max_length
    prefix |= {"image": (0, image), "text": (image, image + words)}
    prefix["state"] = (image + words, image + words + 1)
    length = patches * len(cameras)
    return {
        "vision": TokenLayout(length, {**tower, "image": (0, length)}),
        "vlm": TokenLayout(image + words + 1, prefix),
        "action": TokenLayout(config.chunk_size, {"action": (0, config.chunk_size)}),
    }


def check(policy: SmolVLAPolicy) -> None:
    """ValueError for a SmolVLA whose modules hooks do not reach as described here."""
    config = policy.config
    if config.compile_model:
        raise ValueError(
            "the policy is compiled (compile_model), which hooks cannot enter: set it to False."
        )
    if config.rtc_config is not None and config.rtc_config.enabled:
        raise ValueError(
            "the policy is set to real-time chunking (rtc_config), whose steps depend on the last "
            "chunk: set rtc_config to None."
        )
    side = math.isqrt(round(math.prod(_picture_size(config))))
    if _picture_size(config) != (side, side):
        raise ValueError(
            f"pictures of {_picture_size(config)} pixels: SmolVLA's connector takes square ones."
        )
