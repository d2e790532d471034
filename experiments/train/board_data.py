"""Board demonstrations as training batches, and the tokenizer of the board's language."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from experiments.train.board_model import CAPTION_LEN, Batch
from mistjax.envs.board.captions import CAPTION_WORDS
from mistjax.envs.board.instructions import COLOURS, HEIGHTS, PHRASINGS, SPEEDS, Task, instruct
from mistjax.models.config import Pi0Config
from mistjax.models.normalize import NormStats, ZScore, pad_to
from mistjax.models.observation import Observation
from mistjax.models.tokenizers import EOS, PromptTokenizer, train_word_tokenizer
from mistjax.models.transforms import to_unit

PROMPT_LEN = 20
LAYOUT_UNIT = 0.1


def board_tokenizer() -> PromptTokenizer:
    """One piece for each word of the instructions and the motion captions."""
    tasks = (
        Task(colour, cell, cell, speed, height)
        for colour, cell, speed, height in itertools.product(COLOURS, range(1, 6), SPEEDS, HEIGHTS)
    )
    sentences = [instruct(task, p) for task in tasks for p in range(PHRASINGS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "board.model"
        train_word_tokenizer(sentences, CAPTION_WORDS, path)
        return PromptTokenizer.from_file(path, PROMPT_LEN)


def read_shards(
    folders: Sequence[Path], program: str
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Every shard of the folders: its columns, all in one, and its text, one after another.

    Raises:
        FileNotFoundError: a folder holds none; it says that `program` writes them.
    """
    for folder in folders:
        if not any(folder.glob("shard_*.safetensors")):
            raise FileNotFoundError(
                f"{folder} holds no demonstrations: write some with "
                f"`python -m {program} --out {folder}`."
            )
    paths = sorted(path for f in folders for path in f.glob("shard_*.safetensors"))
    parts = [load_file(path) for path in paths]
    text = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, text


@dataclasses.dataclass(frozen=True, eq=False)
class Shards:
    """Demonstrations as they were written.

    Attributes:
        columns: image, wrist_image, state, actions, aux and episode, each [n,...].
        prompts, captions: one of each frame.
    """

    columns: dict[str, np.ndarray]
    prompts: list[str]
    captions: list[str]

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Shards:
        """Every shard of the folders; FileNotFoundError names a folder that holds none."""
        columns, text = read_shards(folders, "mistjax.envs.board.demos --episodes 2400")
        prompts, captions = ([t for part in text for t in part[k]] for k in ("prompt", "caption"))
        return cls(columns, prompts, captions)

    @property
    def layout(self) -> np.ndarray:
        """Positions of target stone, target cell and other stone in units of `LAYOUT_UNIT`."""
        return self.columns["aux"] / LAYOUT_UNIT

    @property
    def gripper(self) -> np.ndarray:
        """Its x, y and z in units of `LAYOUT_UNIT`."""
        return self.columns["state"][:, :3] / LAYOUT_UNIT

    def images(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Model camera -> its pictures [n,h,w,3] uint8."""
        cameras = ("image", "wrist_image")
        return {name: self.columns[key] for name, key in zip(names, cameras, strict=True)}

    def statistics(self) -> dict[str, NormStats]:
        return {key: NormStats.of(self.columns[key]) for key in ("state", "actions")}


@dataclasses.dataclass(frozen=True, eq=False)
class BoardData:
    """Demonstrations in memory: pictures stay uint8, everything else is as the model reads it.

    Attributes:
        images: model camera -> [n,h,w,3] uint8.
        arrays: state, prompt and what the loss needs, each [n,...].
        norm_stats: statistics of states and actions in the robot's units.
    """

    images: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    norm_stats: dict[str, NormStats]

    def __len__(self) -> int:
        return len(self.arrays["state"])

    @classmethod
    def load(
        cls,
        folders: Sequence[Path],
        tokenizer: PromptTokenizer,
        config: Pi0Config,
        norm_stats: dict[str, NormStats] | None = None,
    ) -> BoardData:
        """What a pi0 reads of every shard.

        Args:
            folders: of demonstrations.
            tokenizer, config: of the model.
            norm_stats: None computes them from the data.

        Raises:
            FileNotFoundError: a folder holds none.
        """
        shards = Shards.read(folders)
        stats = norm_stats or shards.statistics()

        def model_units(key: str) -> np.ndarray:
            return pad_to(ZScore(stats[key]).normalize(shards.columns[key]), config.action_dim)  # pyright: ignore[reportReturnType]

        encode = functools.cache(lambda text: tokenizer.encode_pi0(text)[0])
        say = functools.cache(lambda text: _caption(tokenizer, text))
        arrays = {
            "state": model_units("state"),
            "actions": model_units("actions"),
            "layout": shards.layout,
            "prompt": np.stack([encode(p) for p in shards.prompts]),
            "caption": np.stack([say(c) for c in shards.captions]),
        }
        return cls(shards.images(config.image_keys), arrays, stats)

    def take(self, rows: np.ndarray) -> BoardData:
        """Some examples, under the statistics of all."""
        images, arrays = ({k: v[rows] for k, v in d.items()} for d in (self.images, self.arrays))
        return dataclasses.replace(self, images=images, arrays=arrays)

    def draw(
        self, rng: np.random.Generator, size: int
    ) -> tuple[Observation, dict[str, np.ndarray]]:
        """`size` examples drawn without replacement: what is seen, and every array."""
        rows = np.sort(rng.choice(len(self), size, replace=False))
        a = {key: value[rows] for key, value in self.arrays.items()}
        obs = Observation(
            images={name: to_unit(image[rows]) for name, image in self.images.items()},
            image_masks={name: np.ones(size, bool) for name in self.images},
            state=a["state"],
            tokenized_prompt=a["prompt"],
            tokenized_prompt_mask=a["prompt"] != 0,
        )
        return obs, a

    def batch(self, rng: np.random.Generator, size: int) -> Batch:
        """A pi0's training batch."""
        obs, a = self.draw(rng, size)
        return Batch(obs, a["actions"], a["caption"], a["layout"])  # pyright: ignore[reportArgumentType]


def _caption(tokenizer: PromptTokenizer, text: str) -> np.ndarray:
    """Token ids of a caption with its end token, padded with 0."""
    ids = [*tokenizer.encode(text), EOS]
    if len(ids) > CAPTION_LEN:
        raise ValueError(f"caption {text!r} has {len(ids)} tokens: the model reads {CAPTION_LEN}.")
    return np.pad(np.array(ids, np.int32), (0, CAPTION_LEN - len(ids)))
