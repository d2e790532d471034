"""Where taps and edits find things in our modules: adapters, and names of token positions."""

from __future__ import annotations

from mistjax.hooks.adapters import Point, ScannedStack, Stream
from mistjax.hooks.sites import TokenLayout
from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.gemma import expert_name


def scanned_stacks(config: Pi0Config | FastConfig) -> tuple[ScannedStack, ...]:
    """The adapters of our modules: the vision tower, and all experts in one Gemma stack.

    `action` is the last expert. In pi0-FAST that is the VLM itself while it writes the action.
    """

    def gemma(index: int) -> Stream:
        project = ("attn", expert_name("attn_vec_einsum", index))
        ffn = (expert_name("mlp", index),)
        points = {
            "attn_heads": Point(project, argument=0),
            "attn_out": Point(project),
            "mlp_neurons": Point(ffn, argument=0, method="project_down"),
            "mlp_out": Point(ffn),
        }
        return Stream(points, carry_index=index)

    attention = ("MultiHeadDotProductAttention_0", "out")
    vision = Stream(
        {
            "attn_heads": Point(attention, argument=0),
            "attn_out": Point(attention),
            "mlp_neurons": Point(("MlpBlock_0", "Dense_1"), argument=0),
            "mlp_out": Point(("MlpBlock_0",)),
        },
        groups=len(config.image_keys),
        exit=("PaliGemma", "img"),
    )
    encoder = ("PaliGemma", "img", "Transformer", "encoderblock")
    return (
        ScannedStack(encoder, config.siglip.depth, {"vision": vision}),
        ScannedStack(
            ("PaliGemma", "llm", "layers"),
            config.vlm.depth,
            {"vlm": gemma(0), "action": gemma(len(config.experts) - 1)},
        ),
    )


def token_layouts(config: Pi0Config | FastConfig) -> dict[str, TokenLayout]:
    """Names of token positions: cameras, `image`, `text`; `state` (pi0) and `action`.

    pi0-FAST acts one token per step: its `action` has length 1.
    """
    per_camera = config.siglip.num_tokens(config.image_size)
    cameras = {
        key: (i * per_camera, (i + 1) * per_camera) for i, key in enumerate(config.image_keys)
    }
    cameras["image"] = (0, config.num_image_tokens)
    text = (config.num_image_tokens, config.prefix_len)
    if isinstance(config, FastConfig):
        suffix = {"action": (0, 1)}
    elif config.pi05:
        suffix = {"action": (0, config.action_horizon)}
    else:
        suffix = {"state": (0, 1), "action": (1, 1 + config.action_horizon)}
    return {
        "vision": TokenLayout(config.num_image_tokens, cameras),
        "vlm": TokenLayout(config.prefix_len, {**cameras, "text": text}),
        "action": TokenLayout(suffix["action"][1], suffix),
    }
