"""The scripted expert's episodes on the board as LeRobotDatasets, to train LeRobot's policies on.

    python -m experiments.train.board_lerobot_data --out data/board_lerobot

Expert and disturbances are those of `mistjax.envs.board.demos`: in most episodes bursts of noise
are added to what is carried out, and the column `action` is what the expert wanted, so that the
data shows how to come back. Failed episodes are left out. One dataset of `episodes` a part; parts
that are there are kept. About 0.3 s an episode on one CPU core.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from mistjax.compilation import enable_cache
from mistjax.envs.board.demos import draw, play
from mistjax.rollouts.formats.lerobot.export import Episode, write_lerobot
from mistjax.rollouts.plan import BOARD_ENV
from mistjax.rollouts.trace import Trace

FPS = 10.0
CAMERAS = ("observation.images.image", "observation.images.wrist_image")


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    out: folder of datasets.
    parts: how many, of `episodes` each.
    episodes: tried in a part.
    first_seed: of the first episode.
    """

    out: Path = Path("data/board_lerobot")
    parts: int = 3
    episodes: int = 100
    first_seed: int = 100_000


def demonstrations(seeds: range) -> Iterator[Episode]:
    """The expert's episodes in which it succeeds in spite of the disturbances."""
    for seed in tqdm(seeds, unit="episode"):
        env, frames = play(seed, np.random.default_rng([seed, 1]))
        if not env.is_success():
            continue
        pictures = draw(env, [frame["poses"] for frame in frames])
        trace = Trace(
            seed=seed,
            env_id=BOARD_ENV,
            task=json.dumps(dataclasses.asdict(env.episode.task)),
            prompt=env.episode.prompt,
            policy="expert",
            policy_fingerprint="expert",
            success=True,
            state=np.stack([frame["state"] for frame in frames]),
            actions=np.stack([frame["action"] for frame in frames]),
            chunks=np.zeros((0, 1, 4), np.float32),
            inference_step=np.zeros(0, np.int64),
            timings_ms=np.zeros(0, np.float32),
        )
        yield trace, {name: pictures[:, i] for i, name in enumerate(CAMERAS)}, FPS


def main(config: Config) -> None:
    for part in range(config.parts):
        first = config.first_seed + part * config.episodes
        out = config.out / f"{first:07d}"
        if not out.exists():
            seeds = range(first, first + config.episodes)
            write_lerobot(out, demonstrations(seeds), {"env_id": BOARD_ENV, "actions": "wanted"})


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    enable_cache()
    main(tyro.cli(Config))
