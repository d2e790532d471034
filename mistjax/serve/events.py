"""What a server did, as it goes: a line of JSON for every request, and whole episodes as a run.

`OUT/events-TIME-PROCESS.jsonl` is appended line by line, each in one write, and synced once a
second: what a process that died had answered is there, and of a machine that lost power all but the
last second. With recording, OUT is a run folder too (see `mistjax.rollouts.store`). Both are
written on a thread of their own, so that a slow disk delays no reply; where it cannot keep up,
episodes are left out and counted.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistjax.files import refuse_file
from mistjax.rollouts.lock import FolderLock
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Json, Trace

_BEHIND = 256  # episodes
_SYNC_S = 1.0


class Events:
    """See the module; use `Events.open`, and `close` it.

    Attributes:
        path: file of the events.
        first: number of the first episode that the folder does not have yet.
        lost: episodes that could not be kept.
    """

    def __init__(self, path: Path, handle: int, lock: FolderLock | None, run: RunWriter | None):
        self.path, self.lost = path, 0
        self.first = 0 if run is None else max(run.seeds, default=-1) + 1
        self._handle, self._lock, self._run = handle, lock, run
        self._queue: queue.Queue[Trace | None] = queue.Queue(_BEHIND)
        self._thread = threading.Thread(target=self._write, name="mistjax events", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Json] | None = None) -> Events:
        """Begins a file of events; with a configuration, also a run, or goes on with one.

        Raises:
            ValueError, FileExistsError, NotADirectoryError, FolderBusyError: as `RunWriter.open`.
        """
        refuse_file(folder)
        run = None if config is None else RunWriter.open(folder, config)
        lock = FolderLock.take(folder) if run is None else None
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        path = folder / f"events-{now}-{os.getpid()}.jsonl"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        return cls(path, handle, lock, run)

    def add(self, event: Mapping[str, Json]) -> None:
        """Appends one event; NaN and Inf become null."""
        os.write(self._handle, json.dumps(_finite(event)).encode() + b"\n")

    def keep(self, trace: Trace) -> None:
        """Has an episode stored, where the server records."""
        if self._run is None:
            return
        try:
            self._queue.put_nowait(trace)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Returns when all is stored."""
        self._queue.put(None)
        self._thread.join()
        os.fsync(self._handle)
        if not os.fstat(self._handle).st_size:
            self.path.unlink()
        os.close(self._handle)
        if self._run is not None:
            self._run.__exit__(None)
        if self._lock is not None:
            self._lock.release()

    def _write(self) -> None:
        while True:
            try:
                trace = self._queue.get(timeout=_SYNC_S)
            except queue.Empty:
                with contextlib.suppress(OSError):
                    os.fsync(self._handle)
                continue
            if trace is None:
                return
            assert self._run is not None
            try:
                self._run.add(trace)
            except Exception as error:
                self.lost += 1
                self.add({"event": "lost", "episode": trace.seed, "why": str(error)[:300]})


def _finite(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not abs(value) < float("inf") else value
        for name, value in event.items()
    }
