"""LeRobotDatasets of the board as training batches of a small SmolVLA.

Pictures are decoded once and kept in a file beside the training state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mistjax.envs.board.physics import STEP
from mistjax.rollouts.formats.lerobot.export import DATA_PATH, EPISODES_PATH, VIDEO_PATH
from mistjax.rollouts.mp4 import read_mp4

CAMERAS = ("observation.images.image", "observation.images.wrist_image")
CLOSING, FAR = 3, 5e-4  # index of the gripper's action; metres that a disturbance moves it by


@dataclasses.dataclass(frozen=True, eq=False)
class LeRobotFrames:
    """All frames in memory, pictures as they were stored.

    Attributes:
        images: uint8 [n, cameras, h, w, 3].
        state: robot units [n, 5].
        actions: the next `horizon` actions [n, horizon, 4], the last one repeated at the end.
        meant: [n, horizon], False from the first step on at which something else was carried out.
        prompts: one of each frame.
    """

    images: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    meant: np.ndarray
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.state)

    @classmethod
    def load(cls, folders: Sequence[Path], horizon: int, kept: Path) -> LeRobotFrames:
        """Reads datasets.

        Args:
            folders: of LeRobotDatasets v3.0.
            horizon: length of the action chunks.
            kept: file of the decoded pictures; written when it is not there.

        Raises:
            FileNotFoundError: a folder holds none.
            ValueError: `kept` is of other data.
        """
        parts: list[tuple[np.ndarray, ...]] = []
        prompts: list[str] = []
        pictures: list[np.ndarray] = []
        for folder in folders:
            data = folder / DATA_PATH.format(chunk_index=0, file_index=0)
            if not data.exists():
                raise FileNotFoundError(f"{folder} holds no LeRobotDataset: see the module's head.")
            table = pq.read_table(data)
            state, action = (_matrix(table, name) for name in ("observation.state", "action"))
            for row in pq.read_table(folder / EPISODES_PATH).to_pylist():
                rows = slice(row["dataset_from_index"], row["dataset_to_index"])
                parts.append((state[rows], *_labels(state[rows], action[rows], horizon)))
                prompts += row["tasks"] * row["length"]
                if not kept.exists():
                    pictures.append(_pictures(folder, row))
        if not kept.exists():
            np.save(kept, np.concatenate(pictures))
        columns = [np.concatenate(column).astype(np.float32) for column in zip(*parts, strict=True)]
        state, actions, meant = columns
        images = np.load(kept, mmap_mode="r")
        if len(images) != len(state):
            raise ValueError(
                f"{kept} holds {len(images)} frames, the data {len(state)}: remove it."
            )
        return cls(images, state, actions, meant > 0, prompts)

    def batch(
        self, rng: np.random.Generator, size: int, encode: Callable[[str], np.ndarray]
    ) -> dict[str, Tensor]:
        """`size` examples drawn without replacement."""
        rows = np.sort(rng.choice(len(self), size, replace=False))
        named = {
            name: getattr(self, name)[rows] for name in ("images", "state", "actions", "meant")
        }
        named["words"] = np.stack([encode(self.prompts[row]) for row in rows])
        return {name: torch.from_numpy(value) for name, value in named.items()}


def _matrix(table, name: str) -> np.ndarray:
    return np.stack(table[name].to_numpy()).astype(np.float32)


def _labels(state: np.ndarray, action: np.ndarray, horizon: int) -> tuple[np.ndarray, ...]:
    """Chunks of one episode, and which of their steps were carried out as meant."""
    steps = np.arange(len(action))
    ahead = np.minimum(steps[:, None] + np.arange(horizon), len(action) - 1)
    moved, wanted = np.diff(state[:, :3], axis=0), STEP * action[:-1, :3]
    pushed = np.linalg.norm(moved - wanted, axis=1) > FAR
    pushed |= np.sign(state[1:, 4]) != np.sign(action[:-1, CLOSING])
    meant = ~np.append(pushed, False)[ahead]
    return action[ahead], np.logical_and.accumulate(meant, axis=1)


def _pictures(folder: Path, row: dict) -> np.ndarray:
    def read(camera: str) -> np.ndarray:
        place = {key: row[f"videos/{camera}/{key}"] for key in ("chunk_index", "file_index")}
        return read_mp4(folder / VIDEO_PATH.format(video_key=camera, **place))[0][: row["length"]]

    return np.stack([read(camera) for camera in CAMERAS], axis=1)
