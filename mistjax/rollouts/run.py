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
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int
from safetensors import SafetensorError, safe_open

from mistjax.files import read_json, read_tensors
from mistjax.hooks.sites import Tap
from mistjax.rollouts.trace import Json, Trace, check_tensors, checked_row, episode_name
from mistjax.untrusted import refuse_stand_in

FORMAT = 1
JSON_COLUMNS = ("perturbation", "info")
SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("success", pa.bool_()),
        ("failure_cause", pa.string()),
        ("error", pa.string()),
        ("steps", pa.int64()),
        ("inferences", pa.int64()),
        ("monitored", pa.bool_()),
        ("first_alarm_step", pa.int64()),
        ("edited_inferences", pa.int64()),
        ("median_ms", pa.float64()),
        ("fault", pa.string()),
        ("fault_input", pa.string()),
        ("fault_strength", pa.float64()),
        ("fault_onset", pa.int64()),
        ("named_input", pa.string()),
        ("named_step", pa.int64()),
        ("env_id", pa.string()),
        ("policy", pa.string()),
        ("policy_fingerprint", pa.string()),
        ("perturbation", pa.string()),
        ("info", pa.string()),
    ]
)
_MOST_ROWS = 10**7


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
        rows: one dict per episode, see `Trace.row`.
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

    @property
    def crashed(self) -> tuple[int, ...]:
        """The seeds of the episodes that crashed."""
        return tuple(row["seed"] for row in self.rows if row["error"] is not None)

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
    """Opens a run folder, complete or still being written. What a damaged one holds is not trusted:
    an error here or on loading a trace names the file.

    Raises:
        FileNotFoundError: `path` is not a run folder.
        ValueError: written by a newer format, or damaged.
    """
    path = Path(path)
    config = read_header(path)["config"]
    rows = read_rows(path)

    def load(seed: int) -> Trace:
        file = path / "traces" / f"{episode_name(seed)}.safetensors"
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: the run has the table but not the trace.")
        tensors = read_tensors(file)
        try:
            check_tensors(tensors, rows[seed])
        except ValueError as error:
            raise ValueError(f"{file} does not hold the episode of its row: {error}") from None
        return Trace.from_parts(rows[seed], tensors)

    return Run(config, tuple(rows[seed] for seed in sorted(rows)), path, load)


def read_header(path: Path) -> dict[str, Json]:
    """`run.json`; raises as `load_run` does."""
    file = path / "run.json"
    if not file.exists():
        raise FileNotFoundError(f"{path} is not a run folder: it has no run.json.")
    about = read_json(file)
    version, config = about.get("format"), about.get("config")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"{file} is damaged: its format is {version!r}.")
    if version > FORMAT:
        raise ValueError(
            f"{path} has run format {version}, this version reads up to {FORMAT}: update mistjax."
        )
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: it has no configuration.")
    return about


def read_rows(path: Path) -> dict[int, dict[str, Json]]:
    """The row of each stored episode by its seed; raises as `load_run` does.

    The trace file decides about an episode that crashed, or that the table does not have: it may
    have been run again since.
    """
    rows = {}
    if (path / "episodes.parquet").exists():
        rows = {row["seed"]: row for row in _read_table(path / "episodes.parquet")}
    for file in (path / "traces").glob("*.safetensors"):
        if not file.stem.isdecimal():
            continue
        seed = int(file.stem)
        if seed not in rows or rows[seed]["error"] is not None:
            rows[seed] = _read_row(file, seed)
    return rows


def _read_table(file: Path) -> list[dict[str, Json]]:
    try:
        table = pq.ParquetFile(file)
        if table.metadata.num_rows > _MOST_ROWS:
            raise ValueError(f"it has {table.metadata.num_rows} rows")
        rows = table.read(SCHEMA.names).to_pylist()
        return [
            checked_row(row | {name: json.loads(row[name] or "null") for name in JSON_COLUMNS})
            for row in rows
        ]
    except (ValueError, KeyError, OSError, RecursionError, pa.ArrowException) as error:
        raise ValueError(f"{file} is not the table of a run, or damaged: {error}") from None


def _read_row(file: Path, seed: int) -> dict[str, Json]:
    """The row in the header of a trace file."""
    with file.open("rb") as handle:
        refuse_stand_in(file, handle.read(64))
    try:
        with safe_open(file, "numpy") as handle:
            row = json.loads((handle.metadata() or {})["episode"])
        row = checked_row(row)
        if row["seed"] != seed:
            raise ValueError(f"it is of seed {row['seed']}")
        return row
    except (ValueError, KeyError, RecursionError, SafetensorError) as error:
        raise ValueError(
            f"{file} is not a trace, or damaged ({error}): where it is removed, its episode can "
            "be run again."
        ) from None
