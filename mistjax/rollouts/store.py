"""Run folders: `run.json`, `episodes.parquet`, `traces/<name>.safetensors`, `videos/<name>.mp4`.

An episode is stored when its trace file is: that file also carries the episode's row in its header,
is written last, and appears under its name only when complete. So a run may be killed at any
moment, and a reader never sees half of an episode. `episodes.parquet` is the same rows as one
table, for pandas and the like; it lags behind by a few episodes while a run goes on. A table
without its trace files still loads.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from mistjax.files import atomic
from mistjax.rollouts.mp4 import enlarge, write_mp4
from mistjax.rollouts.run import FORMAT, JSON_COLUMNS, read_header, read_rows
from mistjax.rollouts.trace import Json, Trace, episode_name, to_json

_ROWS_BETWEEN_TABLES = 32
_SCHEMA = pa.schema(
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
        ("env_id", pa.string()),
        ("policy", pa.string()),
        ("policy_fingerprint", pa.string()),
        ("perturbation", pa.string()),
        ("info", pa.string()),
    ]
)


class RunWriter:
    """Adds episodes to a run folder. Use `RunWriter.open`, as a context manager."""

    def __init__(self, path: Path, rows: dict[int, dict[str, Json]]):
        self.path = path
        self._rows = rows
        self._unlisted = 0

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Json]) -> RunWriter:
        """Starts a run, or goes on with one of the same configuration.

        Raises:
            ValueError: the folder holds a run of another configuration; names the fields.
            FileExistsError: the folder holds something else.
        """
        path = Path(path)
        config = json.loads(to_json(config))
        if (path / "run.json").exists():
            _check_same(path, read_header(path)["config"], config)
        elif path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty and not a run folder: choose another one.")
        for folder in ("traces", "videos"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        if not (path / "run.json").exists():
            about = {
                "format": FORMAT,
                "config": config,
                "fingerprint": hashlib.sha256(to_json(config).encode()).hexdigest()[:16],
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy")},
            }
            with atomic(path / "run.json") as temporary:
                temporary.write_text(json.dumps(about, indent=2) + "\n")
        return cls(path, read_rows(path))

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.write_table()

    @property
    def seeds(self) -> frozenset[int]:
        """Seeds of the episodes that are stored."""
        return frozenset(self._rows)

    def add(self, trace: Trace, fps: float = 10.0) -> None:
        """Stores an episode; when this returns it survives a power cut."""
        if trace.frames is not None:
            with atomic(self.path / "videos" / f"{trace.episode}.mp4") as temporary:
                write_mp4(temporary, enlarge(trace.frames), fps)
        row = json.loads(to_json(trace.row()))
        blob = save(trace.tensors(), metadata={"episode": to_json(row)})
        with atomic(self._trace_file(trace.seed)) as temporary:
            temporary.write_bytes(blob)
        self._rows[trace.seed] = row
        self._unlisted += 1
        if self._unlisted >= _ROWS_BETWEEN_TABLES:
            self.write_table()

    def forget_errors(self) -> None:
        """Drops crashed episodes, so that their seeds run again."""
        for seed in [seed for seed, row in self._rows.items() if row["error"] is not None]:
            self._trace_file(seed).unlink(missing_ok=True)
            del self._rows[seed]
        self.write_table()

    def write_table(self) -> None:
        """Brings `episodes.parquet` up to date."""
        rows = [
            row | {name: to_json(row[name]) for name in JSON_COLUMNS}
            for _, row in sorted(self._rows.items())
        ]
        with atomic(self.path / "episodes.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), temporary)
        self._unlisted = 0

    def _trace_file(self, seed: int) -> Path:
        return self.path / "traces" / f"{episode_name(seed)}.safetensors"


def _check_same(path: Path, old: Mapping[str, Json], new: Mapping[str, Json]) -> None:
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if names:
        changes = "; ".join(f"{n} was {old.get(n)!r}, now {new.get(n)!r}" for n in names)
        raise ValueError(
            f"{path} holds another run ({changes}): choose another folder, or the same settings."
        )
