"""`Events`: a server's log, one line of JSON per request, and recorded episodes as a run folder.

`OUT/events-TIME-PROCESS.jsonl` is appended to with one write per line and synced once a second: a
crash of the process loses nothing that was answered, a power failure at most the last second. With
recording, OUT is also a run folder (see `mistjax.rollouts.store`), written on a thread of its own;
where the disk cannot keep up, episodes are dropped and counted.
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
    """See the module docstring; made by `Events.open`.

    Attributes:
        path: the event log.
        first: number of the first episode that the folder does not have yet.
        lost: episodes that could not be stored.
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
        """Starts an event log in a folder; given a run's configuration, also starts that run, or
        continues it.

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
        """Appends one event. NaN and Inf become null, which JSON has in their place."""
        os.write(self._handle, json.dumps(_finite(event)).encode() + b"\n")

    def keep(self, trace: Trace) -> None:
        """Queues an episode to be stored, where the server records."""
        if self._run is None:
            return
        try:
            self._queue.put_nowait(trace)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Waits until everything is stored. A log without events is removed."""
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
