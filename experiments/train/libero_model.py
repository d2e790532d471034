"""The tiny pi0 of the LIBERO experiment: its sizes, data and loss.

Next to flow matching, the loss regresses where the object and the place to put it are from the
pooled prompt states, which teaches a small network to look; that head is no part of the policy.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.train.board_data import BoardData, read_shards
from experiments.train.board_model import layout_error
from mistjax.models.config import IMAGE_KEYS, GemmaConfig, Pi0Config, SiglipConfig
from mistjax.models.normalize import NormStats, ZScore, pad_to
from mistjax.models.observation import Observation
from mistjax.models.pi0 import Pi0, flow_loss, flow_noise
from mistjax.models.tokenizers import UNKNOWN, PromptTokenizer, train_word_tokenizer
from mistjax.policies import LIBERO_TINY, PiPolicy

PROMPT_LEN = 24
LAYOUT_UNIT = 0.1
PICTURES = ("image", "wrist_image")


def libero_config(
    vocab_size: int, patch: int = 8, width: int = 96, vision_layers: int = 2
) -> Pi0Config:
    """Two 64 px cameras, four layers, chunks of 8 actions: 0.8 M parameters, or 1.6 M at a width of
    128 with four layers of vision."""
    mlp, head = 8 * width // 3, width // 4
    return Pi0Config(
        siglip=SiglipConfig(width, vision_layers, mlp, num_heads=4, patch_size=(patch, patch)),
        vlm=GemmaConfig(width, 4, mlp, num_heads=4, num_kv_heads=1, head_dim=head),
        action_expert=GemmaConfig(64, 4, 192, num_heads=4, num_kv_heads=1, head_dim=head),
        vocab_size=vocab_size,
        image_size=LIBERO_TINY.env_options["image_size"],
        image_keys=IMAGE_KEYS[:2],
        action_dim=8,
        action_horizon=8,
        max_token_len=PROMPT_LEN,
        dtype="float32",
        remat=False,
    )


def word_tokenizer(prompts: Sequence[str]) -> PromptTokenizer:
    """One piece for each word of the prompts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "words.model"
        train_word_tokenizer(sorted(set(prompts)), (), path)
        return PromptTokenizer.from_file(path, PROMPT_LEN)


def taught_before(
    start: PiPolicy, tokenizer: PromptTokenizer, config: Pi0Config, fresh: Any
) -> Any:
    """The weights of a policy that has learned other tasks, for the words of `tokenizer`.

    Args:
        start: the policy.
        tokenizer: of all tasks that are to be learned.
        config: the model that takes the weights.
        fresh: its initial weights, which a word keeps that `start` does not know.

    Raises:
        ValueError: the policy has another model, but for its words and the length of a prompt.
    """
    sizes = {"vocab_size": config.vocab_size, "max_token_len": config.max_token_len}
    if dataclasses.replace(start.config, **sizes) != config:
        raise ValueError(f"{start.name} has another model: expected {config}, got {start.config}.")
    pieces = [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    theirs = np.array([start.tokenizer.piece_to_id(piece) for piece in pieces])
    known = (theirs != UNKNOWN) | (np.arange(len(pieces)) == UNKNOWN)
    params = jax.tree.map(lambda leaf: leaf, start.variables["params"])
    table = params["PaliGemma"]["llm"]["embedder"]
    table["input_embedding"] = jnp.where(
        known[:, None],
        table["input_embedding"][theirs],
        fresh["PaliGemma"]["llm"]["embedder"]["input_embedding"],
    )
    return params


@dataclasses.dataclass(frozen=True, eq=False)
class LiberoData:
    """Demonstrations of `mistjax.envs.libero.demos` in memory.

    Attributes:
        data: pictures and normalised arrays.
        tokenizer: of their prompts.
    """

    data: BoardData
    tokenizer: PromptTokenizer

    @classmethod
    def load(cls, *folders: Path, stats: dict[str, NormStats] | None = None) -> LiberoData:
        """Every shard of the folders; FileNotFoundError names a folder that holds none.

        State and actions are normalised by `stats`, or by their own.
        """
        columns, text = read_shards(folders, "mistjax.envs.libero.demos")
        prompts = [prompt for part in text for prompt in part["prompt"]]
        tokenizer = word_tokenizer(prompts)
        stats = stats or {key: NormStats.of(columns[key]) for key in ("state", "actions")}
        width = libero_config(tokenizer.vocab_size).action_dim
        encode = functools.cache(lambda prompt: tokenizer.encode_pi0(prompt)[0])
        arrays = {
            key: np.asarray(pad_to(ZScore(stats[key]).normalize(columns[key]), width))
            for key in stats
        }
        arrays |= {
            "layout": columns["aux"] / LAYOUT_UNIT,
            "episode": columns["episode"],
            "prompt": np.stack([encode(prompt) for prompt in prompts]),
        }
        images = {key: columns[name] for key, name in zip(IMAGE_KEYS, PICTURES, strict=False)}
        return cls(BoardData(images, arrays, stats), tokenizer)

    def split(self, every: int) -> tuple[LiberoData, LiberoData]:
        """Without and with one in `every` episodes, by seed."""
        held = self.data.arrays["episode"] % every == 0
        parts = (self.data.take(np.flatnonzero(rows)) for rows in (~held, held))
        rest, held = (dataclasses.replace(self, data=part) for part in parts)
        return rest, held

    def batch(self, rng: np.random.Generator, size: int, shift: int = 0) -> Batch:
        """Examples under light of random brightness, within 15%, and each picture moved by up to
        `shift` pixels, with its edge repeated."""
        obs, arrays = self.data.draw(rng, size)
        gain = rng.uniform(0.85, 1.15, (size, 1, 1, 1)).astype(np.float32)
        images = {k: np.clip((v + 1) * gain - 1, -1, 1) for k, v in obs.images.items()}
        if shift:
            images = {k: shifted(v, rng, shift) for k, v in images.items()}
        obs = dataclasses.replace(obs, images=images)
        return Batch(obs, arrays["actions"], arrays["layout"])  # pyright: ignore[reportArgumentType]


def shifted(
    images: Float[np.ndarray, "b h w c"], rng: np.random.Generator, most: int
) -> Float[np.ndarray, "b h w c"]:
    """Each picture moved by up to `most` pixels along either side, with its edge repeated."""
    (b, height, width), by = images.shape[:3], rng.integers(-most, most + 1, (2, len(images), 1))
    rows, columns = (
        np.clip(np.arange(n) + d, 0, n - 1) for n, d in zip((height, width), by, strict=True)
    )
    return images[np.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]


@flax.struct.dataclass
class Batch:
    """Training examples, normalised.

    Attributes:
        obs: what the policy sees.
        actions: the expert's chunk.
        layout: positions (m / 0.1) of the object and of the place to put it.
    """

    obs: Observation
    actions: Float[Array, "b h a"]
    layout: Float[Array, "b 6"]


def libero_loss(
    params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    config: Pi0Config,
    flow_samples: int,
    layout_weight: float,
) -> tuple[Array, dict[str, Array]]:
    """Total loss and its parts; `flow_samples` noise draws share one prefix."""
    model, variables = Pi0(config), {"params": params["model"]}
    obs = batch.obs
    cache, valid, hidden = model.apply(variables, obs, method=Pi0.prefill)  # pyright: ignore[reportAssignmentType]

    def repeat(x, axis=0):
        return jnp.repeat(x, flow_samples, axis=axis)

    actions = repeat(batch.actions)
    noise, t = flow_noise(key, actions)
    x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * actions
    cache = jax.tree.map(lambda leaf: repeat(leaf, 1), cache)
    inputs = cache, repeat(valid), repeat(obs.state), x_t, t
    velocity, _ = model.apply(variables, *inputs, method=Pi0.velocity)
    flow = jnp.mean(flow_loss(velocity, noise, actions))
    prompt = hidden[:, config.num_image_tokens : config.prefix_len]
    layout = layout_error(params["layout_head"], prompt, obs, batch.layout)
    item, place = 1000 * LAYOUT_UNIT * jnp.sqrt(layout.reshape(2, 3).mean(axis=1))
    total = flow + layout_weight * jnp.mean(layout)
    return total, {"flow": flow, "item_mm": item, "place_mm": place}
