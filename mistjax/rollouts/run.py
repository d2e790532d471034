"""`Run`: recorded episodes, read back.

Reads a run folder whether complete or still being written: the rows come from `episodes.parquet`,
and those that it does not have yet from the headers of the trace files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Int
from safetensors import safe_open
from safetensors.numpy import load_file

from mistjax.hooks.sites import Tap
from mistjax.rollouts.trace import Json, Trace, episode_name

FORMAT = 1
JSON_COLUMNS = ("perturbation", "info")


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of all finished episodes, padded to the longest (N inferences).

    Attributes:
        values: [E,N,...], zeros where `mask` is False.
        mask: which inferences exist.
        success: how each episode ended.
        seeds: which episode it is.
        tasks: its task.
    """

    values: np.ndarray
    mask: Bool[np.ndarray, "e n"]
    success: Bool[np.ndarray, " e"]
    seeds: Int[np.ndarray, " e"]
    tasks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """Recorded episodes, in the order of their seeds. Traces are read when asked for.

    Attributes:
        config: what the run was: policy, environment, perturbation, taps.
        rows: one dict an episode, see `Trace.row`.
        path: the run folder; None for a run held in memory.
    """

    config: Mapping[str, Json]
    rows: tuple[Mapping[str, Json], ...]
    path: Path | None
    _load: Callable[[int], Trace]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(row["seed"] for row in self.rows)

    @property
    def finished(self) -> tuple[Mapping[str, Json], ...]:
        """The rows that ended in success or failure; crashes are apart."""
        return tuple(row for row in self.rows if row["error"] is None)

    def trace(self, seed: int) -> Trace:
        """Loads one episode; KeyError when the run does not have it."""
        if seed not in self.seeds:
            raise KeyError(f"no episode with seed {seed}: the run has {len(self.rows)} others.")
        return self._load(seed)

    def traces(self) -> Iterator[Trace]:
        """Loads the finished episodes one after the other."""
        return (self.trace(row["seed"]) for row in self.finished)

    def video(self, seed: int) -> Path | None:
        """The episode's video, if one was recorded."""
        if self.path is None:
            return None
        path = self.path / "videos" / f"{episode_name(seed)}.mp4"
        return path if path.exists() else None

    def features(self, tap: Tap | str) -> Features:
        """What a tap recorded, over all finished episodes.

        Raises:
            ValueError: no finished episode, or the tap was not recorded.
        """
        name = str(tap)
        traces = list(self.traces())
        if not traces:
            raise ValueError("the run has no finished episode: nothing to take features from.")
        if any(name not in trace.features for trace in traces):
            raise ValueError(
                f"tap {name!r} was not recorded: the run has {sorted(traces[0].features)}."
            )
        arrays = [trace.features[name] for trace in traces]
        mask = np.arange(max(map(len, arrays))) < np.array([len(a) for a in arrays])[:, None]
        values = np.zeros((*mask.shape, *arrays[0].shape[1:]), arrays[0].dtype)
        for row, array in zip(values, arrays, strict=True):
            row[: len(array)] = array
        return Features(
            values=values,
            mask=mask,
            success=np.array([trace.success for trace in traces], bool),
            seeds=np.array([trace.seed for trace in traces]),
            tasks=tuple(trace.task for trace in traces),
        )


def memory_run(config: Mapping[str, Json], traces: Mapping[int, Trace]) -> Run:
    """A run that was not written anywhere."""
    rows = tuple(traces[seed].row() for seed in sorted(traces))
    return Run(config, rows, None, traces.__getitem__)


def load_run(path: str | Path) -> Run:
    """Opens a run folder, complete or still being written.

    Raises:
        FileNotFoundError: `path` is not a run folder.
        ValueError: written by a newer format.
    """
    path = Path(path)
    config = read_header(path)["config"]
    rows = read_rows(path)

    def load(seed: int) -> Trace:
        file = path / "traces" / f"{episode_name(seed)}.safetensors"
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: the run has the table but not the trace.")
        return Trace.from_parts(rows[seed], load_file(file))

    return Run(config, tuple(rows[seed] for seed in sorted(rows)), path, load)


def read_header(path: Path) -> dict[str, Json]:
    if not (path / "run.json").exists():
        raise FileNotFoundError(f"{path} is not a run folder: it has no run.json.")
    about = json.loads((path / "run.json").read_text())
    if about["format"] > FORMAT:
        raise ValueError(
            f"{path} has run format {about['format']}, this version reads up to {FORMAT}: "
            "update mistjax."
        )
    return about


def read_rows(path: Path) -> dict[int, dict[str, Json]]:
    rows = {}
    if (path / "episodes.parquet").exists():
        for row in pq.read_table(path / "episodes.parquet").to_pylist():
            rows[row["seed"]] = row | {name: json.loads(row[name]) for name in JSON_COLUMNS}
    for file in (path / "traces").glob("*.safetensors"):
        if int(file.stem) in rows:
            continue
        with safe_open(file, "numpy") as handle:
            rows[int(file.stem)] = json.loads(handle.metadata()["episode"])
    return rows
