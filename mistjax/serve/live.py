"""`Live`: streams what a server sees and says to a Rerun viewer, or into .rrd files.

Every episode is a recording with the views of `mistjax export-rerun`: cameras, scores and their
thresholds, what the monitor does, the actions that went out, and the explanation of an alarm. A
thread of its own writes, so a slow disk or a missing viewer delays no reply; inferences that it
cannot keep up with are dropped and counted.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mistjax.envs.faults.battery import input_name
from mistjax.files import refuse_file
from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.protocol import PolicySpec, RawObs
from mistjax.report.rerun import Moment, act, check_installed, open_stream, show
from mistjax.rollouts.trace import episode_name

LOG = logging.getLogger("mistjax.serve")
SCORES = {"failure score": "", "input score": "input_"}
"""Name of a score -> prefix of its keys in a reply, after `mist/`."""
_BEHIND = 64  # inferences
_PATIENCE_S = 10.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """One inference of an episode; without an observation, the end of the episode."""

    episode: int
    step: int = 0
    raw: RawObs | None = None
    reply: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt: str = ""


class Live:
    """See the module docstring.

    Attributes:
        lost: inferences that were dropped.

    Args:
        to: a viewer's address, rerun+http://HOST:PORT/proxy, or a folder for .rrd files.
        preset, spec: of the served policy.
        scores: the names in `SCORES` that its replies have.

    Raises:
        ImportError: Rerun is not installed.
        NotADirectoryError: a file is where the folder should be.
    """

    def __init__(self, to: str, preset: RobotPreset, spec: PolicySpec, scores: tuple[str, ...]):
        self._address = to if "://" in to else None
        self._folder = Path(to)
        self._spec, self._scores, self.lost = spec, scores, 0
        self._cameras = {key: input_name(key) for key in preset.cameras.values() if key is not None}
        check_installed()
        if self._address is None:
            refuse_file(self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.UTC)
        self._began = now.strftime("%Y%m%dT%H%M%S")  # tells the episodes of two servers apart
        self._streams: dict[int, Any] = {}
        self._queue: queue.SimpleQueue[Seen | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._show, name="mistjax rerun", daemon=True)
        self._thread.start()

    def tell(self, seen: Seen) -> None:
        """Queues an inference or the end of an episode; never waits."""
        if seen.raw is None or self._queue.qsize() < _BEHIND:
            self._queue.put(seen)
        else:
            self.lost += 1

    def close(self) -> None:
        """Waits until everything is written; for a viewer, ten seconds at most."""
        self._queue.put(None)
        self._thread.join(None if self._address is None else _PATIENCE_S)
        if self.lost:
            LOG.warning("%d inferences could not be shown in Rerun", self.lost)

    def _show(self) -> None:
        while (seen := self._queue.get()) is not None:
            try:
                self._one(seen)
            except Exception:
                self.lost += 1
                LOG.exception("an inference of episode %d cannot be shown", seen.episode)
        for episode in list(self._streams):
            self._end(episode)

    def _one(self, seen: Seen) -> None:
        if seen.raw is None:
            self._end(seen.episode)
            return
        new = seen.episode not in self._streams
        if new:
            self._streams[seen.episode] = self._open(seen.episode)
        stream, reply = self._streams[seen.episode], seen.reply
        said = reply["mist/explanation"] or (f"\u201c{seen.prompt}\u201d" if new else "")
        scores = {}
        for name in self._scores:
            score, threshold = (reply[f"mist/{SCORES[name]}{x}"] for x in ("score", "threshold"))
            if score is not None:
                scores[name] = score, np.inf if threshold is None else threshold
        pictures = {
            name: np.asarray(seen.raw[key])
            for key, name in self._cameras.items()
            if key in seen.raw
        }
        show(stream, Moment(seen.step, pictures, scores, _doing(reply), said))
        for i, action in enumerate(reply["actions"][: self._spec.execute_steps]):
            act(stream, seen.step + i, self._spec.action_names, action)

    def _open(self, episode: int) -> Any:
        name = f"{self._began}-{episode_name(episode)}"
        out = None if self._address else self._folder / f"{name}.rrd"
        stream = open_stream(
            name, [*self._cameras.values()], self._spec.action_names, self._scores, out=out
        )
        if self._address is not None:
            stream.connect_grpc(self._address)
        return stream

    def _end(self, episode: int) -> None:
        stream = self._streams.pop(episode, None)
        if stream is not None:
            stream.disconnect()


def _doing(reply: Mapping[str, Any]) -> str:
    """The monitor's state, in the words of the reports."""
    if reply["mist/fallback"]:
        return "fallback"
    if reply["mist/decision"] in ("late", "pass_through"):
        return reply["mist/decision"].replace("_", " ")
    if reply["mist/edited"]:
        doing = "repairing" if reply["mist/input"] else "steering"
        return f"ALARM · {doing}" if reply["mist/alarm"] else doing
    return "ALARM" if reply["mist/alarm"] else "watching"
