"""Board demonstrations as training batches of the tiny OpenVLA."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from experiments.train.board_data import LAYOUT_UNIT
from experiments.train.board_model import CAPTION_LEN
from interop.openvla import actions
from mistjax.models.tokenizers import BOS, EOS, PromptTokenizer

DATASET = "board"
CAMERAS = ("image", "wrist_image")


@dataclasses.dataclass(frozen=True, eq=False)
class OpenVLAData:
    """Demonstrations in memory: pictures stay uint8, the rest is what the network reads.

    Attributes:
        columns: image and wrist_image uint8 [n,h,w,3]; state, prompt, caption, layout, actions.
        norm_stats: the content of `dataset_statistics.json`.
    """

    columns: dict[str, np.ndarray]
    norm_stats: dict[str, dict]

    def __len__(self) -> int:
        return len(self.columns["state"])

    @classmethod
    def load(
        cls,
        folders: Sequence[Path],
        tokenizer: PromptTokenizer,
        norm_stats: Mapping[str, Any] | None = None,
    ) -> OpenVLAData:
        """Reads every shard; FileNotFoundError names a folder without one.

        Args:
            folders: of demonstrations.
            tokenizer: of the model.
            norm_stats: None computes them from the data.
        """
        if empty := [str(f) for f in folders if not any(f.glob("shard_*.safetensors"))]:
            raise FileNotFoundError(
                f"{empty} hold no demonstrations: see experiments.train.board_pi0 for how to "
                "write some."
            )
        files = sorted(path for f in folders for path in f.glob("shard_*.safetensors"))
        text = [json.loads(file.with_suffix(".json").read_text()) for file in files]
        data = {name: _column(files, name) for name in (*CAMERAS, "state", "actions", "aux")}
        prompt = functools.cache(lambda t: tokenizer.pad([BOS, *tokenizer.encode(t)])[0])
        caption = functools.cache(lambda t: _padded([*tokenizer.encode(t), EOS]))
        stats = dict(norm_stats or {}).get(DATASET) or {
            "action": _statistics(data["actions"]),
            "proprio": _statistics(data["state"]),
            "num_transitions": len(data["state"]),
        }
        columns = {
            **{camera: data[camera] for camera in CAMERAS},
            "state": actions.normalise(data["state"], stats["proprio"]).astype(np.float32),
            "actions": actions.normalise(data["actions"], stats["action"]).astype(np.float32),
            "layout": data["aux"] / LAYOUT_UNIT,
            "prompt": np.stack([prompt(t) for shard in text for t in shard["prompt"]]),
            "caption": np.stack([caption(t) for shard in text for t in shard["caption"]]),
        }
        return cls(columns, {DATASET: stats})

    def batch(self, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        """`size` examples drawn without replacement."""
        rows = np.sort(rng.choice(len(self), size, replace=False))
        return {name: torch.from_numpy(column[rows]) for name, column in self.columns.items()}


def _column(files: Sequence[Path], name: str) -> np.ndarray:
    def read(file: Path) -> np.ndarray:
        with safe_open(file, "np") as shard:
            return shard.get_tensor(name)

    return np.concatenate([read(file) for file in files])


def _statistics(values: np.ndarray) -> dict:
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    q01, q99 = np.quantile(flat, (0.01, 0.99), axis=0)
    found = {"mean": flat.mean(0), "std": flat.std(0), "q01": q01, "q99": q99}
    return {name: value.tolist() for name, value in found.items()}


def _padded(ids: list[int]) -> np.ndarray:
    if len(ids) > CAPTION_LEN:
        raise ValueError(f"a caption has {len(ids)} tokens: the model reads {CAPTION_LEN}.")
    return np.pad(np.array(ids, np.int32), (0, CAPTION_LEN - len(ids)))
