"""The tiny pi0-FAST of the board experiments: its sizes, its data, its loss, where it starts.

The vision tower and the VLM have the sizes of the board's pi0 and may start from its weights. The
loss is the next token of the written action, and the same regression of positions.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.train.board_data import BoardData, Shards
from experiments.train.board_model import board_config, layout_error, layout_mm
from mistjax.envs.board.instructions import INSTRUCTION_WORDS
from mistjax.models import fast
from mistjax.models.config import FastConfig
from mistjax.models.fast import Pi0Fast, continuation_loss
from mistjax.models.fast_language import (
    RESERVED,
    FastTokenizer,
    pad_actions,
    train_prompt_tokenizer,
)
from mistjax.models.fast_tokenizer import ActionTokenizer
from mistjax.models.normalize import NormStats, Quantile
from mistjax.models.observation import Observation
from mistjax.models.tokenizers import PAD, STATE_BINS, UNKNOWN, PromptTokenizer
from mistjax.policies import FastPolicy, PiPolicy

PROMPT_LEN = 26
WRITTEN_LEN = 26
ACTION_IDS = 512
ACTION_SCALE = 5.0
NUMBERS = (92, 80, 64, 14, 6)  # of the 256, for x, y, z, opening and last command
STEP_MM = 20.0  # how far an action of 1 moves the gripper
TABLE = ("PaliGemma", "llm", "embedder", "input_embedding")


def fast_config(vocab_size: int) -> FastConfig:
    """0.7 M parameters: the sizes of the board's pi0 without its action expert."""
    pi0 = board_config(vocab_size)
    return FastConfig(
        siglip=pi0.siglip,
        vlm=pi0.vlm,
        vocab_size=vocab_size,
        image_size=pi0.image_size,
        image_keys=pi0.image_keys,
        action_dim=4,
        action_horizon=pi0.action_horizon,
        max_token_len=PROMPT_LEN,
        max_decoding_steps=4 * pi0.action_horizon + 3,  # every coefficient a token
        decoding_gap=0,
        whole_actions=True,
        dtype=pi0.dtype,
        remat=pi0.remat,
    )


def fast_tokenizer(chunks: Float[np.ndarray, "n h a"]) -> FastTokenizer:
    """The board's words, the state's numbers, and byte pairs learnt from normalised chunks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "board.model"
        train_prompt_tokenizer(INSTRUCTION_WORDS, path)
        prompts = PromptTokenizer.from_file(path, PROMPT_LEN)
    actions = ActionTokenizer.train(chunks, vocab_size=ACTION_IDS, scale=ACTION_SCALE)
    return FastTokenizer(prompts, actions, prompts.vocab_size + actions.vocab_size + RESERVED)


@dataclasses.dataclass(frozen=True, eq=False)
class FastData:
    """Demonstrations in memory as a pi0-FAST reads and writes them.

    Attributes:
        data: with the arrays state, prompt, written and positions.
        tokenizer: what the tokens mean.
        expert: the actions as they were recorded, [n,8,4].
    """

    data: BoardData
    tokenizer: FastTokenizer
    expert: np.ndarray

    @classmethod
    def load(
        cls, folders: Sequence[Path], start: FastPolicy | None = None, renumber: bool = False
    ) -> FastData:
        """Every shard, in the tokens and units of `start`; None learns both from the data.

        Args:
            folders: of demonstrations.
            start: a policy that is trained on.
            renumber: do not keep its units of the state, see `shared_numbers`.

        Raises:
            FileNotFoundError: a folder holds none.
            ValueError: a chunk that the tokens of `start` cannot write in the room there is.
        """
        shards = Shards.read(folders)
        stats = shards.statistics() if start is None else start.norm_stats
        if start is None or renumber:
            stats = {**stats, "state": shared_numbers(shards.columns["state"])}
        chunks = _quantile_units(shards, stats, "actions")
        state = _quantile_units(shards, stats, "state")
        tokenizer = fast_tokenizer(chunks) if start is None else start.tokenizer
        pairs = zip(shards.prompts, state, strict=True)
        arrays = {
            "state": state,
            "prompt": np.stack([tokenizer.encode_prompt(text, s)[0] for text, s in pairs]),
            "written": pad_actions(map(tokenizer.encode_actions, chunks), WRITTEN_LEN),
            "positions": np.concatenate([shards.layout, shards.gripper], axis=1),
        }
        images = shards.images(fast_config(tokenizer.vocab_size).image_keys)
        return cls(BoardData(images, arrays, stats), tokenizer, shards.columns["actions"])

    def describe(self) -> str:
        """How long written actions are, and how far they are from the expert's."""
        written = self.data.arrays["written"]
        lengths = np.sum(written != PAD, axis=1) - self.tokenizer.overhead
        decoded, ok = self.tokenizer.decode_actions(jnp.asarray(written))
        actions = Quantile(self.data.norm_stats["actions"]).unnormalize(np.asarray(decoded))
        error = STEP_MM * np.abs(np.clip(actions, -1, 1) - self.expert)[..., :3]
        most, near = np.quantile(lengths, 0.95), np.quantile(error, 0.95)
        return (
            f"{len(written)} chunks, {np.mean(ok):.0%} decodable: {lengths.mean():.1f} action "
            f"tokens each (95%: {most:.0f} or fewer, the longest {lengths.max()}), "
            f"{error.mean():.2f} mm a step from the expert's (95%: {near:.2f} mm or less)"
        )

    def batch(self, rng: np.random.Generator, size: int) -> FastBatch:
        """A training batch."""
        obs, a = self.data.draw(rng, size)
        return FastBatch(obs, a["written"], a["positions"])  # pyright: ignore[reportArgumentType]


def shared_numbers(state: Float[np.ndarray, "n s"]) -> NormStats:
    """Statistics that give each dimension of the state a range of the 256 numbers to itself.

    A number then says which dimension it is of; where all share the numbers, only its place in the
    prompt does, which is harder to learn. Costs resolution: about 4 mm in x and y, 2 mm in z.
    """
    low, high, count = state.min(axis=0), state.max(axis=0), np.array(NUMBERS)
    unit = (high - low) / (count - 2)  # one spare number at each end
    first = low - (np.cumsum(count) - count + 1) * unit
    ends = (first.astype(np.float32), (first + STATE_BINS * unit).astype(np.float32))
    return dataclasses.replace(NormStats.of(state), q01=ends[0], q99=ends[1])


def _quantile_units(shards: Shards, stats: dict[str, NormStats], key: str) -> np.ndarray:
    return np.asarray(Quantile(stats[key]).normalize(shards.columns[key]))


@flax.struct.dataclass
class FastBatch:
    """Training examples.

    Attributes:
        obs: what the policy sees.
        written: the expert's chunk as tokens, 0-padded.
        positions: the layout as in `board_model.Batch`, and the gripper's x, y and z.
    """

    obs: Observation
    written: Int[Array, "b c"]
    positions: Float[Array, "b 9"]


def fast_loss(
    params,
    batch: FastBatch,
    key: PRNGKeyArray,
    *,
    config: FastConfig,
    layout_weight: float,
    train_vision: bool,
) -> tuple[Array, dict[str, Array]]:
    """Total loss and its parts: nats a written token, and positions in mm."""
    del key  # nothing is drawn
    model, weights = Pi0Fast(config), params["model"]
    if not train_vision:
        weights = {"PaliGemma": {**weights["PaliGemma"]}}
        weights["PaliGemma"]["img"] = jax.lax.stop_gradient(weights["PaliGemma"]["img"])
    variables = {"params": weights}
    out: Any = model.apply(variables, batch.obs, batch.written, method=Pi0Fast.prefill)
    _, valid, hidden = out
    token = jnp.mean(continuation_loss(model, variables, valid, hidden, batch.written))
    prompt = hidden[:, config.num_image_tokens : config.prefix_len]
    error = layout_error(params["layout_head"], prompt, batch.obs, batch.positions)
    gripper = {"gripper_mm": 100 * jnp.sqrt(jnp.mean(error[6:]))}
    parts = {"token": token, **layout_mm(error[:6]), **gripper}
    return token + layout_weight * jnp.mean(error), parts


def initial_params(
    config: FastConfig, tokenizer: PromptTokenizer, start: PiPolicy, seed: int
) -> dict[str, Any]:
    """Random parameters, replaced by those of a pi0 where name and shape agree.

    The embedding table has other rows: numbers begin as `renumbered`, and a piece that both
    vocabularies have keeps the pi0's row.
    """
    random: dict = flatten_dict(fast.init(config, jax.random.key(seed))["params"])
    given: dict = flatten_dict(start.variables["params"])
    params = {
        path: given[path] if path in given and given[path].shape == leaf.shape else leaf
        for path, leaf in random.items()
    }
    theirs = [
        start.tokenizer.piece_to_id(piece)
        for piece in map(tokenizer.id_to_piece, range(tokenizer.vocab_size))
    ]
    rows = [i for i, row in enumerate(theirs) if row != UNKNOWN]
    words = random[TABLE].at[np.array(rows)].set(given[TABLE][np.array(theirs)[rows]])
    return renumbered(unflatten_dict({**params, TABLE: words}), tokenizer)


def renumbered(params: dict[str, Any], tokenizer: PromptTokenizer) -> dict[str, Any]:
    """The parameters with numbers embedded near each other where the numbers are.

    Sines and cosines of a geometric row of periods from 8 to 1024, as large as the rows they
    replace. Numbers that are words of the instructions stay.
    """
    flat: dict = flatten_dict(params)
    table = jnp.asarray(flat[TABLE])
    numbers = np.array([n for n in range(STATE_BINS) if str(n) not in INSTRUCTION_WORDS])
    rows = np.array([tokenizer.piece_to_id(f"▁{n}") for n in numbers])
    angle = 2 * np.pi * numbers[:, None] / np.geomspace(8, 4 * STATE_BINS, table.shape[1] // 2)
    waves = np.sqrt(2) * np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    flat[TABLE] = table.at[rows].set(jnp.std(table[rows]) * waves)
    return unflatten_dict(flat)
