"""`Runner`: the robot's side of a policy server: observations in, actions out at a fixed rate.

A thread of its own asks the server; `act` never waits for it. Each observation has the number of
its control step, so a chunk that arrives later begins where the robot is by then (`naive` in
`mistjax.realtime.strategies`); what is older than the newest chunk is dropped. Where no chunk has
an action for this step, or the newest one is older than the deadline, the declared fallback goes
out, never the last action. A connection that breaks is made anew, and the server then begins
another episode.

It imports NumPy alone; the client is openpi's, or whatever has `infer(observation) -> dict`.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

_KEPT = 256  # latencies


class Client(Protocol):
    """What asks for a chunk: openpi's `WebsocketClientPolicy` for one."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Action:
    """What goes to the motors at one control step.

    Attributes:
        values: the action.
        fallback: whether it is the declared fallback.
        step: the control step.
        age: steps since the observation that it is of; -1 for a fallback.
        reply: what the server said with it: `mist/alarm` and the like; {} for a fallback.
    """

    values: np.ndarray
    fallback: bool
    step: int
    age: int
    reply: Mapping[str, Any]


class Runner:
    """See the module; a context manager.

    Args:
        connect: makes a client; called again when a connection breaks.
        fallback: the action that holds the robot still, from the observation.
        every: control steps between two observations that are sent, at least; an inference that
            takes longer is waited for.
        deadline: control steps after which a chunk is too old to be executed.
        retry_s: between two attempts to connect.
    """

    def __init__(
        self,
        connect: Callable[[], Client],
        fallback: Callable[[Mapping[str, Any]], np.ndarray],
        *,
        every: int,
        deadline: int,
        retry_s: float = 0.5,
    ):
        if every < 1 or deadline < every:
            raise ValueError(
                f"every is {every}, deadline {deadline}: expected 1 or more, and a deadline that "
                "is no shorter."
            )
        self._connect, self._fallback, self._retry_s = connect, fallback, retry_s
        self._every, self._deadline = every, deadline
        self._step, self._asked = 0, -every
        self._chunk: tuple[int, np.ndarray, Mapping[str, Any]] | None = None
        self._wanted: tuple[int, dict[str, Any]] | None = None
        self._lock, self._news = threading.Lock(), threading.Condition()
        self._latency: collections.deque[float] = collections.deque(maxlen=_KEPT)
        self._over, self.errors = False, 0
        self._busy = False
        self._thread = threading.Thread(target=self._ask, name="mistjax runner", daemon=True)
        self._thread.start()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._over = True
            self._news.notify()

    def act(self, observation: Mapping[str, Any]) -> Action:
        """The action of this control step; call it once a step."""
        step = self._step
        self._step += 1
        with self._news:
            if not self._busy and step - self._asked >= self._every:
                self._asked, self._busy = step, True
                self._wanted = step, dict(observation)
                self._news.notify()
        with self._lock:
            chunk = self._chunk
        if chunk is not None:
            begun, actions, reply = chunk
            age = step - begun
            if age < min(len(actions), self._deadline) and np.isfinite(actions[age]).all():
                return Action(actions[age], False, step, age, reply)
        return Action(np.asarray(self._fallback(observation)), True, step, -1, {})

    @property
    def latency_s(self) -> tuple[float, float]:
        """Median and 99% quantile of the last 256 round trips, s; NaN before the first."""
        if not self._latency:
            return float("nan"), float("nan")
        low, high = np.quantile(list(self._latency), (0.5, 0.99))
        return float(low), float(high)

    def _ask(self) -> None:
        client = None
        while True:
            with self._news:
                self._news.wait_for(lambda: self._over or self._wanted is not None)
                if self._over:
                    _close(client)
                    return
                assert self._wanted is not None
                step, observation = self._wanted
                self._wanted = None
            try:
                client = client or self._connect()
                start = time.monotonic()
                reply = client.infer(observation)
                self._latency.append(time.monotonic() - start)
                actions = np.asarray(reply["actions"])
                with self._lock:
                    self._chunk = step, actions, reply
            except RuntimeError:  # the server refuses this observation; the connection lives
                self.errors += 1
            except Exception:
                self.errors += 1
                _close(client)
                client = None
                time.sleep(self._retry_s)
            finally:
                with self._news:
                    self._busy = False


def _close(client: Any) -> None:
    """Openpi's client has no `close`; its socket has."""
    socket = getattr(client, "_ws", None)
    if socket is not None:
        socket.close()
