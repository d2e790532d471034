"""The tiny pi0 of the board experiments: its sizes, and the co-training loss.

The loss adds two terms to flow matching. A next-token loss on short motion captions ("move left
slowly") trains the language head, so that directions in the VLM keep a meaning in words; a
regression of where the stones and the target are, from the pooled prompt states, teaches a small
network to look. The regression head is not part of the shipped model.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mistjax.models.config import IMAGE_KEYS, FastConfig, GemmaConfig, Pi0Config, SiglipConfig
from mistjax.models.observation import Observation
from mistjax.models.pi0 import Pi0, flow_loss, flow_noise

CAPTION_LEN = 8


def board_config(vocab_size: int) -> Pi0Config:
    """0.9 M parameters: two 64 px cameras in 16 patches each, four layers, chunks of 8 actions."""
    return Pi0Config(
        siglip=SiglipConfig(width=96, depth=2, mlp_dim=256, num_heads=4, patch_size=(16, 16)),
        vlm=GemmaConfig(96, 4, 256, num_heads=4, num_kv_heads=1, head_dim=24),
        action_expert=GemmaConfig(64, 4, 192, num_heads=4, num_kv_heads=1, head_dim=24),
        vocab_size=vocab_size,
        image_size=64,
        image_keys=IMAGE_KEYS[:2],
        action_dim=5,
        action_horizon=8,
        max_token_len=20,
        dtype="float32",
        remat=False,
    )


@flax.struct.dataclass
class Batch:
    """Training examples, normalised.

    Attributes:
        obs: what the policy sees.
        actions: the expert's chunk.
        caption: motion caption, 0-padded.
        layout: positions (m / 0.1) of target stone, target cell and other stone, x and y each.
    """

    obs: Observation
    actions: Float[Array, "b h a"]
    caption: Int[Array, "b c"]
    layout: Float[Array, "b 6"]


def init_layout_head(config: Pi0Config | FastConfig, size: int = 6) -> dict[str, Array]:
    return {"kernel": jnp.zeros((config.vlm.width, size)), "bias": jnp.zeros(size)}


def layout_error(
    head: dict[str, Array],
    prompt: Float[Array, "b p d"],
    obs: Observation,
    layout: Float[Array, "b n"],
) -> Float[Array, " n"]:
    """Squared error of the positions that a linear head reads off the pooled prompt states."""
    words = obs.tokenized_prompt_mask[..., None]
    pooled = jnp.sum(prompt * words, axis=1) / jnp.sum(words, axis=1)
    return jnp.mean(jnp.square(pooled @ head["kernel"] + head["bias"] - layout), axis=0)


def layout_mm(error: Float[Array, " 6"]) -> dict[str, Array]:
    """The errors that are logged, in millimetres a coordinate."""
    stone, cell, _ = 100 * jnp.sqrt(error.reshape(3, 2).mean(axis=1))
    return {"stone_mm": stone, "cell_mm": cell}


def board_loss(
    params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    config: Pi0Config,
    flow_samples: int,
    layout_weight: float,
    caption_weight: float,
) -> tuple[Array, dict[str, Array]]:
    """Total loss and its parts; `flow_samples` noise draws share one prefix."""
    model, variables = Pi0(config), {"params": params["model"]}
    obs = batch.obs
    cache, valid, hidden = model.apply(variables, obs, batch.caption, method=Pi0.prefill)  # pyright: ignore[reportAssignmentType]

    def repeat(x, axis=0):
        return jnp.repeat(x, flow_samples, axis=axis)

    actions = repeat(batch.actions)
    noise, t = flow_noise(key, actions)
    x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * actions
    velocity, _ = model.apply(
        variables,
        jax.tree.map(lambda leaf: repeat(leaf, 1), cache),
        repeat(valid),
        repeat(obs.state),
        x_t,
        t,
        method=Pi0.velocity,
    )
    flow = jnp.mean(flow_loss(velocity, noise, actions))

    prompt = hidden[:, config.num_image_tokens : config.prefix_len]
    layout = layout_error(params["layout_head"], prompt, obs, batch.layout)

    last = jnp.sum(obs.tokenized_prompt_mask, axis=1) - 1
    first = jnp.take_along_axis(prompt, last[:, None, None], axis=1)
    states = jnp.concatenate([first, hidden[:, config.prefix_len : -1]], axis=1)
    logits = model.apply(variables, states, method=Pi0.decode)
    real = batch.caption != 0
    token = optax.softmax_cross_entropy_with_integer_labels(logits, batch.caption)  # pyright: ignore[reportArgumentType]
    caption = jnp.sum(token * real) / jnp.sum(real)

    total = flow + layout_weight * jnp.mean(layout) + caption_weight * caption
    return total, {"flow": flow, "caption": caption, **layout_mm(layout)}
