"""Recorded runs as a LeRobotDataset v3.0, to look at, to share or to train on.

    meta/info.json                          what there is: features, frame rate, paths
    meta/stats.json                         statistics of each feature
    meta/tasks.parquet                      prompt -> index
    meta/episodes/chunk-000/file-000.parquet     where each episode's frames are, and its statistics
    data/chunk-000/file-000.parquet         one row per frame
    videos/CAMERA/chunk-000/file-000.mp4    one file per episode

A frame is what was observed before an action, and the action. Beyond what the format asks for, a
frame says `next.done` and `next.success`, and an episode its seed and its policy's fingerprint.
Pictures come from the run's videos, so they were compressed with H.264 at high quality once.

Source: the dataset format of lerobot (codebase version v3.0).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from mistjax.files import atomic, refuse_file
from mistjax.ranges import between
from mistjax.rollouts.formats.lerobot.stats import statistics, together
from mistjax.rollouts.mp4 import read_mp4, write_mp4
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace

VERSION = "v3.0"
PER_CHUNK = 1000  # files in one folder
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
WORST_MATCH = 12.0  # grey levels by which H.264 may change a picture, on average

Frames = UInt8[np.ndarray, "t h w 3"]
Episode = tuple[Trace, Mapping[str, Frames], float]
"""An episode, `observation.images.CAMERA` -> pictures, and frames per second."""


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written: episodes, frames, and the finished episodes that have no video."""

    episodes: int
    frames: int
    without_video: int


def export_lerobot(
    run: Run, out: Path, *, pictures: bool = True, fps: float | None = None
) -> Export:
    """Writes the finished episodes of a run, successes and failures, as a dataset.

    Args:
        run: what was recorded.
        out: folder to write; appears when complete.
        pictures: write those episodes that were recorded as video, with their pictures; False
            writes all of them without.
        fps: control rate in Hz; required without pictures, else the videos' own.

    Raises:
        ValueError: `out` exists, there is nothing to write, or the control rate is not positive.
    """
    seeds = [row["seed"] for row in run.finished]
    chosen = [seed for seed in seeds if not pictures or run.video(seed) is not None]
    if out.exists():
        raise ValueError(f"{out} exists: choose another folder.")
    if not chosen:
        raise ValueError(
            f"none of {len(seeds)} finished episodes was recorded as video: record with --videos, "
            "or export without pictures."
        )
    if not pictures and fps is None:
        raise ValueError("without pictures nothing says the control rate: give it as fps.")
    if fps is not None:
        between("fps", fps, 0, math.inf)

    def episodes() -> Iterator[Episode]:
        for seed in chosen:
            trace = run.trace(seed)
            cameras, rate = _cameras(run, trace) if pictures else ({}, fps)
            yield trace, cameras, float(fps or rate or 0)

    frames = write_lerobot(out, episodes(), run.config)
    return Export(len(chosen), frames, len(seeds) - len(chosen))


def write_lerobot(out: Path, episodes: Iterable[Episode], config: Mapping[str, Any]) -> int:
    """Writes episodes as a dataset, which appears when complete; returns the number of frames.

    Args:
        out: folder to write.
        episodes: each with its cameras' pictures, one before each action, and its control rate.
        config: `env_id`, which names the robot, and whatever else `meta/mistjax.json` shall say.
    """
    refuse_file(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as partial:
        writer = _Writer(partial)
        for trace, cameras, fps in episodes:
            writer.add(trace, cameras, fps)
        writer.finish(config)
    return writer.frames


class _Writer:
    """Adds episodes to a dataset, then writes what is known of all of them."""

    def __init__(self, root: Path):
        self.root, self.frames = root, 0
        self.fps = 0.0
        self.tasks: dict[str, int] = {}
        self.features: dict[str, dict[str, Any]] = {}
        self.episodes: list[dict[str, Any]] = []
        self._data: list[pa.Table] = []
        self._sums: list[dict[str, dict[str, np.ndarray]]] = []

    def add(self, trace: Trace, cameras: Mapping[str, Frames], fps: float) -> None:
        index, steps = len(self.episodes), len(trace.actions)
        self.fps = fps
        task = self.tasks.setdefault(trace.prompt, len(self.tasks))
        last = np.arange(steps) == steps - 1
        columns = {
            "observation.state": np.asarray(trace.state, np.float32),
            "action": np.asarray(trace.actions, np.float32),
            "next.done": last,
            "next.success": last & bool(trace.success),
            "timestamp": (np.arange(steps) / self.fps).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, index),
            "index": self.frames + np.arange(steps),
            "task_index": np.full(steps, task),
        }
        self._data.append(pa.table({name: _arrow(values) for name, values in columns.items()}))
        features = {name: _feature(values) for name, values in columns.items()}
        place = {"chunk_index": index // PER_CHUNK, "file_index": index % PER_CHUNK}
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [trace.prompt],
            "length": steps,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + steps,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "mistjax/seed": trace.seed,
            "mistjax/success": trace.success,
            "mistjax/policy_fingerprint": trace.policy_fingerprint,
        }
        stats = {name: statistics(values.reshape(steps, -1)) for name, values in columns.items()}
        for name, frames in cameras.items():
            path = self.root / VIDEO_PATH.format(video_key=name, **place)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(path, frames[:steps], self.fps)
            features[name] = _video_feature(frames, self.fps)
            row |= {f"videos/{name}/{key}": value for key, value in place.items()}
            row |= {f"videos/{name}/from_timestamp": 0.0}
            row |= {f"videos/{name}/to_timestamp": steps / self.fps}
            stats[name] = {
                key: value.reshape(-1, 1, 1) if key != "count" else np.array([steps])
                for key, value in statistics(frames[:steps].reshape(-1, 3) / 255.0).items()
            }
        if index and features != self.features:
            raise ValueError(f"episode {trace.seed} has other sizes than the first: {features}.")
        self.features, self.frames = features, self.frames + steps
        self._sums.append(stats)
        row |= {f"stats/{n}/{k}": v.tolist() for n, s in stats.items() for k, v in s.items()}
        self.episodes.append(row)

    def finish(self, config: Mapping[str, Any]) -> None:
        data = self.root / DATA_PATH.format(chunk_index=0, file_index=0)
        data.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(data, self._data[0].schema) as writer:
            for table in self._data:  # one row group per episode
                writer.write_table(table)
        episodes = self.root / EPISODES_PATH
        episodes.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self.episodes), episodes)
        pq.write_table(_tasks(list(self.tasks)), self.root / "meta" / "tasks.parquet")
        stats = {name: together([s[name] for s in self._sums]) for name in self.features}
        info = {
            "codebase_version": VERSION,
            "robot_type": config["env_id"],
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": int(self.fps) if self.fps.is_integer() else self.fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if any("info" in f for f in self.features.values()) else None,
            "features": self.features,
        }
        for name, content in (("info", info), ("stats", stats), ("mistjax", dict(config))):
            path = self.root / "meta" / f"{name}.json"
            path.write_text(json.dumps(content, indent=2) + "\n")


def _cameras(run: Run, trace: Trace) -> tuple[dict[str, Frames], float]:
    """Each camera's frames, cut out of the episode's video and made as small as they were."""
    path = run.video(trace.seed)
    assert path is not None
    wide, fps = read_mp4(path)
    height = next(iter(trace.images.values())).shape[1]
    factor = max(wide.shape[1] // height, 1)
    wide = wide[:, factor // 2 :: factor, factor // 2 :: factor]
    first = wide[trace.inference_step[0]].astype(np.float32)

    def cut(order: Sequence[str]) -> dict[str, slice]:
        ends = np.cumsum([trace.images[key].shape[2] for key in order]).tolist()
        starts = [0, *ends[:-1]]
        return {k: slice(a, b) for k, a, b in zip(order, starts, ends, strict=True)}

    def error(order: Sequence[str]) -> float:
        """How far the video is from the pictures that were recorded at the first inference."""
        differ = [np.abs(first[:, s] - trace.images[k][0]).mean() for k, s in cut(order).items()]
        return float(np.mean(differ))

    best = min(itertools.permutations(trace.images), key=error)
    if error(best) > WORST_MATCH:
        raise ValueError(f"{path} does not show what the trace of seed {trace.seed} holds.")
    name = "observation.images.{}".format
    return {name(key.split("/")[-1]): wide[:, :, s] for key, s in sorted(cut(best).items())}, fps


def _feature(values: np.ndarray) -> dict[str, Any]:
    width = values.shape[1] if values.ndim > 1 else 1
    return {"dtype": values.dtype.name, "shape": [width], "names": None}


def _video_feature(frames: Frames, fps: float) -> dict[str, Any]:
    height, width = (size - size % 2 for size in frames.shape[1:3])  # as write_mp4 cuts them
    info = {"video.height": height, "video.width": width, "video.channels": 3, "video.fps": fps}
    info |= {"video.codec": "h264", "video.pix_fmt": "yuv420p"}
    info |= {"video.is_depth_map": False, "has_audio": False}
    names = ["height", "width", "channels"]
    return {"dtype": "video", "shape": [height, width, 3], "names": names, "info": info}


def _arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _tasks(tasks: Sequence[str]) -> pa.Table:
    """The table as pandas writes it with the prompt as its index, which readers rely on."""
    column = {"metadata": None, "numpy_type": "object", "pandas_type": "unicode"}
    index = {**column, "name": "task", "field_name": "task"}
    number = {**column, "name": "task_index", "field_name": "task_index"}
    number |= {"numpy_type": "int64", "pandas_type": "int64"}
    names = {**column, "name": None, "field_name": None}
    about = {"index_columns": ["task"], "column_indexes": [names], "columns": [number, index]}
    about |= {"pandas_version": "2.2.0"}
    table = pa.table({"task_index": np.arange(len(tasks)), "task": list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})
