"""`Lane`: one policy on one thread, which batches the requests of several clients and keeps the
state of each one's episode.

No other thread touches the policy. A request waits a bounded time for others; all that have come in
then run in the combination of compiled batch sizes that costs least, as measured after compilation
(on a CPU in processor time, so that other work on the machine does not count). Padding repeats the
first row. A request that cannot be prepared, or whose inference fails, fails alone. The state of
the episodes is stored after the answers have gone out.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.protocol import Policy, RawObs, Sample
from mistjax.recover.watched import EVIDENCE
from mistjax.rollouts.loop import episode_keys
from mistjax.rollouts.recorder import Inference, Recording
from mistjax.serve.memory import Memory


class BadObservation(ValueError):
    """An observation that the policy does not take; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One observation of one client.

    Attributes:
        raw: the flat raw observation.
        slot: the connection's, below the lane's number of slots.
        episode: number of the episode; a new one in a slot starts from the initial state.
        seed, inference: which noise to draw.
        since: `time.monotonic()` at its arrival.
        done: resolves to an `Answer` or an exception.
    """

    raw: RawObs
    slot: int
    episode: int
    seed: int
    inference: int
    since: float = dataclasses.field(default_factory=time.monotonic)
    done: concurrent.futures.Future = dataclasses.field(default_factory=concurrent.futures.Future)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A policy's answer to one request.

    Attributes:
        actions: chunk in the robot's units [H,A].
        said: this row of `Sample.aux`, for the names in `SAID`.
        broken: whether the policy's own chunk was not an action.
        batch, element: the batched inference, for recording, and this request's row of it.
        queue_ms, infer_ms: time in the queue, and of the inference.
        size: requests in the batch.
    """

    actions: np.ndarray
    said: Mapping[str, Any]
    broken: bool
    batch: Inference
    element: int
    queue_ms: float
    infer_ms: float
    size: int


class Lane:
    """See the module docstring.

    Attributes:
        policy: the policy.
        slowest_s: slowest inference of any batch size, measured by `warm`.

    Args:
        policy: what is run.
        sizes: batch sizes to compile, ascending.
        slots: most connections at a time.
        wait_s: how long a request waits for others.
        expected: returns how many clients there are, so that no request waits for more.
        recording: what to keep of each inference.
        name: of the thread.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sizes: Sequence[int],
        slots: int,
        wait_s: float,
        expected: Callable[[], int],
        recording: Recording = Recording(),
        name: str = "policy",
    ):
        self.policy = policy
        self.slowest_s = 0.0
        self._plans: list[tuple[int, ...]] = [()]
        self._sizes, self._wait_s, self._expected = tuple(sizes), wait_s, expected
        self._recording = recording
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._memory = Memory(policy, slots, self._sizes)
        self._since: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"mistjax {name}", daemon=True)

    def warm(self) -> None:
        """Compiles and times every batch size on a made-up observation, then starts the thread."""
        raw, clock = blank(self.policy.preset), time.perf_counter
        spent = time.process_time if jax.default_backend() == "cpu" else clock
        costs, seconds = (dict.fromkeys(self._sizes, math.inf) for _ in range(2))
        for turn in range(1 + _TIMED):
            for size in self._sizes:
                requests = [Request(raw, self._memory.spare, -1, 0, i) for i in range(size)]
                observations = [self.policy.prepare([r.raw]) for r in requests]
                start, before = clock(), spent()
                self._infer(requests, observations)[1]()
                if turn:  # the first one compiles
                    seconds[size] = min(seconds[size], clock() - start)
                    costs[size] = min(costs[size], spent() - before)
        self.slowest_s = max(seconds.values())
        self._plans = plans(costs)
        self._thread.start()

    def submit(self, request: Request) -> concurrent.futures.Future:
        """Queues a request; returns `request.done`."""
        self._queue.put(request)
        return request.done

    def stop(self) -> None:
        """Ends the thread once the queue is empty, without waiting for that."""
        self._queue.put(None)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queue.qsize()

    @property
    def busy_s(self) -> float:
        """How long the inference under way has been running; 0 without one."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def _work(self) -> None:
        while (requests := self._take()) is not None:
            self._since = time.monotonic()
            try:
                self._answer(requests)
            finally:
                self._since = None

    def _take(self) -> list[Request] | None:
        """The next batch: what has come in, or does within the wait; None at the end."""
        first = self._queue.get()
        if first is None:
            return None
        taken, until = [first], time.monotonic() + self._wait_s
        while len(taken) < self._sizes[-1]:
            left = until - time.monotonic() if len(taken) < self._expected() else 0
            try:
                more = self._queue.get(timeout=max(left, 0))
            except queue.Empty:
                break
            if more is None:
                self._queue.put(None)
                break
            taken.append(more)
        return taken

    def _answer(self, requests: Sequence[Request]) -> None:
        """Resolves every request's future to its answer or its own error."""
        ready, observations = [], []
        for request in requests:
            if not request.done.set_running_or_notify_cancel():
                continue
            try:
                observations.append(self.policy.prepare([request.raw]))
                ready.append(request)
            except Exception as error:
                request.done.set_exception(BadObservation(_sentence(error)))
        for asked, seen in _alike(ready, observations):
            first = 0
            for size in self._plans[len(asked)]:
                part = slice(first, first + size)
                self._together(asked[part], seen[part])
                first += size

    def _together(self, requests: Sequence[Request], observations: Sequence[Any]) -> None:
        """Answers requests by one inference; if that fails, each by its own."""
        try:
            answers, remember = self._infer(requests, observations)
        except Exception as error:
            if len(requests) == 1:
                requests[0].done.set_exception(error)
                return
            for request, observation in zip(requests, observations, strict=True):
                self._together([request], [observation])
            return
        for request, answer in zip(requests, answers, strict=True):
            request.done.set_result(answer)
        remember()

    def _infer(
        self, requests: Sequence[Request], observations: Sequence[Any]
    ) -> tuple[list[Answer], Callable[[], None]]:
        """One inference: its answers, and a function that stores the policy's new state."""
        start = time.monotonic()
        size = next(size for size in self._sizes if size >= len(requests))
        repeated = [*range(len(requests)), *[0] * (size - len(requests))]
        rows = [requests[i] for i in repeated]
        raw, asked = [r.raw for r in rows], [(r.slot, r.episode) for r in requests]
        state = self._memory.recall(asked, size)
        keys = episode_keys(np.array([r.seed for r in rows]), np.array([r.inference for r in rows]))
        observation = _stack([observations[i] for i in repeated])
        sample = self.policy.sample(observation, keys, state=state, taps=self._recording.taps)
        remembered, sample = sample.state, _on_host(sample)
        broken = sample.broken
        actions = self.policy.finish(sample, raw)
        seconds = time.monotonic() - start
        batch = Inference.read(self._recording, sample, actions, 1e3 * seconds)
        said = {name: sample.aux[name] for name in SAID if name in sample.aux}
        answers = [
            Answer(
                actions=np.array(actions[i]),
                said={name: value[i] for name, value in said.items()},
                broken=bool(broken[i]),
                batch=batch,
                element=i,
                queue_ms=1e3 * (start - request.since),
                infer_ms=1e3 * seconds,
                size=len(requests),
            )
            for i, request in enumerate(requests)
        ]
        return answers, lambda: self._memory.keep(asked, size, remembered)


_TIMED = 5  # inferences of each size, after the one that compiles


def plans(costs: Mapping[int, float]) -> list[tuple[int, ...]]:
    """For n = 0 to the largest size, the batch sizes that run n requests at the least total cost,
    largest first.

    Args:
        costs: batch size -> cost of one inference.
    """
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, max(costs) + 1):
        found = []
        for size, cost in costs.items():
            rest, sizes = best[max(n - size, 0)]
            found.append((cost + rest, tuple(sorted((size, *sizes), reverse=True))))
        best.append(min(found, key=lambda one: (one[0], len(one[1]))))
    return [sizes for _, sizes in best]


_EVIDENCE = tuple(f"evidence/{name}" for name in EVIDENCE)
SAID = (
    "score",
    "threshold",
    "alarm",
    "fallback",
    "edited",
    "cause",
    "unsound",
    "named",
    "input_score",
    "input_threshold",
    *_EVIDENCE,
)
"""What a reply needs of `Sample.aux`."""


def _on_host(sample: Sample) -> Sample:
    """The sample with its chunk and what a reply needs in NumPy, by one transfer; the evidence of
    an alarm, which is most of that, only where there is one.
    """
    said = {name: sample.aux[name] for name in (*SAID, "decode_ok") if name in sample.aux}
    shown = {name: said.pop(name) for name in _EVIDENCE if name in said}
    actions, said = jax.device_get((sample.actions, said))
    if shown and said["unsound"].any():
        said |= jax.device_get(shown)
    aux = {name: value for name, value in sample.aux.items() if name not in shown} | said
    return dataclasses.replace(sample, actions=actions, aux=aux)


def _stack(observations: Sequence[Any]) -> Any:
    """Prepared observations of one row each, as one batch."""
    if len(observations) == 1:
        return observations[0]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *observations)


def _alike(
    requests: Sequence[Request], observations: Sequence[Any]
) -> list[tuple[list[Request], list[Any]]]:
    """Groups requests by the shapes of their observations."""
    groups: dict[Any, tuple[list[Request], list[Any]]] = {}
    for request, observation in zip(requests, observations, strict=True):
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(observation))
        found = groups.setdefault(shapes, ([], []))
        found[0].append(request)
        found[1].append(observation)
    return list(groups.values())


def blank(preset: RobotPreset) -> dict[str, Any]:
    """An observation that fits the robot: black pictures and a state of zeros."""
    keys = (preset.state_key,) if isinstance(preset.state_key, str) else preset.state_key
    black = np.zeros((64, 64, 3), np.uint8)
    raw: dict[str, Any] = {key: black for key in preset.cameras.values() if key is not None}
    raw |= {key: np.zeros(1, np.float32) for key in keys}
    raw[keys[0]] = np.zeros(preset.state_dim - len(keys) + 1, np.float32)
    return {**raw, "prompt": preset.default_prompt or "warm up"}


def _sentence(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said or f"the observation cannot be read ({type(error).__name__})."
