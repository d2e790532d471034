"""Run folders: `run.json`, `episodes.parquet`, `traces/<name>.safetensors`, `videos/<name>.mp4`.

An episode is stored when its trace file is: that file also carries the episode's row in its header,
is written last, and appears under its name only when complete. So a run may be killed at any
moment, and a reader never sees half of an episode. `episodes.parquet` is the same rows as one
table, for pandas and the like; it lags behind by a few episodes while a run goes on. A table
without its trace files still loads.

A folder has one writer at a time (`run.lock`), and becomes a run (`run.json`) with the first
episode that does not crash: settings that cannot work leave nothing behind.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save

from mistjax.files import atomic, is_leftover, refuse_file, sweep
from mistjax.rollouts import lock
from mistjax.rollouts.lock import FolderLock
from mistjax.rollouts.mp4 import enlarge, write_mp4
from mistjax.rollouts.run import FORMAT, JSON_COLUMNS, SCHEMA, read_header, read_rows
from mistjax.rollouts.trace import Json, Trace, episode_name, to_json

EVENTS = "events-*.jsonl"
"""What a policy server writes beside its run, see `mistjax.serve.events`."""
_ROWS_BETWEEN_TABLES = 32
_FOLDERS = ("traces", "videos")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class RunWriter:
    """Adds episodes to a run folder. Use `RunWriter.open`, as a context manager."""

    def __init__(
        self, path: Path, config: Json, rows: dict[int, dict[str, Json]], folder: FolderLock
    ):
        self.path = path
        self._config = config
        self._rows = rows
        self._lock = folder
        self._held: list[tuple[Trace, float]] = []
        self._unlisted = 0

    @classmethod
    def open(cls, path: str | Path, config: Mapping[str, Json]) -> RunWriter:
        """Starts a run, or resumes one of the same configuration; what a writer that died
        left half done is removed.

        Raises:
            ValueError: the folder holds a run of another configuration (names the fields), or a
                damaged one (names the file).
            FileExistsError, NotADirectoryError: the folder holds something else, or is a file.
            FolderBusyError: another process writes there.
        """
        path = Path(path)
        config = json.loads(to_json(config))
        check_folder(path, config)
        folder = FolderLock.take(path)
        try:
            check_folder(path, config)
            rows = read_rows(path)
            _clean(path, rows)
            return cls(path, config, rows, folder)
        except BaseException:
            folder.release()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if (self.path / "run.json").exists():
                with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                    self.write_table()
        finally:
            self._lock.release()

    @property
    def seeds(self) -> frozenset[int]:
        """Seeds of the episodes that are stored."""
        return frozenset(self._rows)

    @property
    def crashed(self) -> frozenset[int]:
        """Those of them that crashed; an episode that is added takes the place of the crash."""
        return frozenset(seed for seed, row in self._rows.items() if row["error"] is not None)

    def add(self, trace: Trace, fps: float = 10.0) -> None:
        """Stores an episode; when this returns it survives a power cut.

        In a folder that is not a run yet, a crashed episode is stored with the first that is not.

        Raises:
            OSError: it cannot be written, e.g. for a full disk; what was stored before is whole.
        """
        if not (self.path / "run.json").exists():
            if trace.error is not None:
                self._held.append((trace, fps))
                return
            with _space():
                self._claim()
        for one, rate in (*self._held, (trace, fps)):
            with _space():
                self._store(one, rate)
        self._held = []

    def write_table(self) -> None:
        """Brings `episodes.parquet` up to date."""
        rows = [
            row | {name: to_json(row[name]) for name in JSON_COLUMNS}
            for _, row in sorted(self._rows.items())
        ]
        with _space(), atomic(self.path / "episodes.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)
        self._unlisted = 0

    def _claim(self) -> None:
        """Makes the folder a run."""
        for name in _FOLDERS:
            (self.path / name).mkdir(exist_ok=True)
        about = {
            "format": FORMAT,
            "config": self._config,
            "fingerprint": hashlib.sha256(to_json(self._config).encode()).hexdigest()[:16],
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy")},
        }
        with atomic(self.path / "run.json") as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n")

    def _store(self, trace: Trace, fps: float) -> None:
        if trace.frames is not None:
            with atomic(self.path / "videos" / f"{trace.episode}.mp4") as temporary:
                write_mp4(temporary, enlarge(trace.frames), fps)
        row = json.loads(to_json(trace.row()))
        blob = save(trace.tensors(), metadata={"episode": to_json(row)})
        with atomic(self.path / "traces" / f"{trace.episode}.safetensors") as temporary:
            temporary.write_bytes(blob)
        self._rows[trace.seed] = row
        self._unlisted += 1
        if self._unlisted >= _ROWS_BETWEEN_TABLES:
            self.write_table()


def check_folder(path: Path, config: Mapping[str, Json] | None = None) -> None:
    """Raises, as `RunWriter.open` does, unless a folder is a run of a configuration (any, if None)
    or may become one. Costs nothing, so a mistake can be told before a policy is loaded.
    """
    if (path / "run.json").exists():
        old = read_header(path)["config"]
        _check_same(path, old, old if config is None else config)
    else:
        refuse_file(path)
    if path.exists() and not (path / "run.json").exists():
        # a writer that died before it had a run leaves its lock, empty folders and half a file
        inside = [p for name in _FOLDERS if (path / name).is_dir() for p in (path / name).iterdir()]
        known = {lock.NAME, *_FOLDERS}
        for found in [*path.iterdir(), *inside]:
            if found not in inside and found.match(EVENTS):  # a server's
                continue
            if not is_leftover(found) and (found in inside or found.name not in known):
                raise FileExistsError(
                    f"{path} is not empty and not a run folder (it holds {found.name}): choose "
                    "another one."
                )


def _check_same(path: Path, old: Mapping[str, Json], new: Mapping[str, Json]) -> None:
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if names:
        changes = "; ".join(f"{n} was {old.get(n)!r}, now {new.get(n)!r}" for n in names)
        raise ValueError(
            f"{path} holds another run ({changes}): choose another folder, or the same settings."
        )


def _clean(path: Path, rows: Mapping[int, Json]) -> None:
    """Removes half files, and videos of episodes that were not stored."""
    for folder in (path, *(path / name for name in _FOLDERS)):
        if folder.is_dir():
            sweep(folder)
    stored = {f"{episode_name(seed)}.mp4" for seed in rows}
    for video in (path / "videos").glob("*.mp4"):
        if video.stem.isdigit() and video.name not in stored:
            video.unlink()


@contextlib.contextmanager
def _space() -> Iterator[None]:
    """A full disk says what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            error.strerror = f"{error.strerror}: free some, and the same command goes on"
        raise
