"""`EnvPool`: the environments of a batch as one vector, in this process or in several workers.

Slot r lives in worker r modulo their number. All workers are busy at once; replies are passed on
one slot at a time, so that what is done with them overlaps with the workers still stepping.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from mistjax.rollouts.workers.host import MakeEnv, Reply, Request
from mistjax.rollouts.workers.worker import InlineWorker, ProcessWorker, Worker, WorkerLost


class EnvPool:
    """A vector of environments.

    Attributes:
        env_id: gymnasium id of the environments.
        fps: their frames per second.
    """

    def __init__(self, make_env: MakeEnv, slots: int, workers: int = 0, executor: str = "process"):
        """Makes the environments.

        Args:
            make_env: makes one environment; for workers it must be sendable to another process.
            slots: how many environments.
            workers: how many worker processes; 0 steps all environments in this process.
            executor: whether workers are processes of this machine or Ray actors.

        Raises:
            ValueError: a negative number of workers, or an unknown executor.
            RuntimeError: a worker died while it made an environment.
            Exception: whatever `make_env` raises.
        """
        if workers < 0:
            raise ValueError(f"workers is {workers}: expected 0 (this process) or more.")
        self._start = _starter(make_env, min(workers, slots), executor)
        self._workers: list[Worker] = []
        try:
            self._workers = [self._start() for _ in range(min(workers, slots) or 1)]
            self._slots = [range(slots)[i :: len(self._workers)] for i in range(len(self._workers))]
            for worker, own in zip(self._workers, self._slots, strict=True):
                worker.send([("make", (slot,)) for slot in own])
            made = [
                w.receive() for w, own in zip(self._workers, self._slots, strict=True) for _ in own
            ]
        except WorkerLost as death:
            self.close()
            raise RuntimeError(f"{death} while it made its environments.") from death
        except BaseException:
            self.close()
            raise
        self.env_id, self.fps = made[0]

    def exchange(self, requests: Mapping[int, Request]) -> Iterator[tuple[int, Reply]]:
        """Carries out at most one request for each slot; yields (slot, reply).

        When a worker dies, the slot it was busy with gets a reply that is `lost` with an `error`.
        Every other slot of that worker, asked for or not, gets one that is `lost` without an
        `error`: its episode is gone through no fault of its own. A new worker takes their place.
        """
        asked = [[slot for slot in own if slot in requests] for own in self._slots]
        for worker, slots in zip(self._workers, asked, strict=True):
            if slots:
                worker.send([requests[slot] for slot in slots])
        for index, slots in enumerate(asked):
            yield from self._replies(index, slots)

    def _replies(self, index: int, slots: Sequence[int]) -> Iterator[tuple[int, Reply]]:
        for slot in slots:
            try:
                reply = self._workers[index].receive()
            except WorkerLost as death:
                with contextlib.suppress(Exception):
                    self._workers[index].close()
                self._workers[index] = self._start(replaces=True)
                yield slot, Reply(error=str(death), lost=True)
                yield from (
                    (other, Reply(lost=True)) for other in self._slots[index] if other != slot
                )
                return
            yield slot, reply

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []


def _starter(make_env: MakeEnv, workers: int, executor: str) -> Callable[..., Worker]:
    if workers == 0:
        return lambda replaces=False: InlineWorker(make_env)
    if executor == "process":
        return lambda replaces=False: ProcessWorker(make_env)
    if executor == "ray":
        from mistjax.rollouts.workers.ray import RayWorker, connect

        connect(workers)
        return functools.partial(RayWorker, make_env)
    raise ValueError(f"executor is {executor!r}: expected 'process' or 'ray'.")
