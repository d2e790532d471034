"""`Runner`: the robot's side of a policy server: observations in, actions out at a fixed rate.

A background thread talks to the server; `act` never waits for it. An observation is tagged with its
control step, so a chunk that arrives later is entered where the robot is by then (`naive` in
`mistjax.realtime.strategies`) and replaces any older one. Where the newest chunk has no action for
this step, or is older than the deadline, the declared fallback goes out, never the last action.
After a lost connection it connects again, which starts a new episode on the server.

Needs NumPy only. The client is openpi's, or anything with `infer(observation) -> dict`.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

_KEPT = 256  # latest round trips


class Client(Protocol):
    """A policy client, such as openpi's `WebsocketClientPolicy`."""

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Action:
    """The action of one control step.

    Attributes:
        values: in the robot's units [A].
        fallback: whether it is the declared fallback.
        step: the control step, from 0.
        age: control steps since the observation it was inferred from; -1 for a fallback.
        reply: the server's whole reply, with `mist/alarm` and the like; {} for a fallback.
    """

    values: np.ndarray
    fallback: bool
    step: int
    age: int
    reply: Mapping[str, Any]


class Runner:
    """See the module docstring. A context manager.

    Attributes:
        errors: requests so far that got no chunk: refused observations and lost connections.

    Args:
        connect: returns a connected client; called again after a lost connection.
        fallback: maps an observation to the action that holds the robot still [A].
        every: least number of control steps from one request to the next; there is never more than
            one request under way.
        deadline: age, in control steps, from which a chunk is not executed any more.
        retry_s: seconds from a lost connection to the next attempt.

    Raises:
        ValueError: `every` is below 1, or `deadline` below `every`.
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
        """The action of this control step; call it exactly once per step."""
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
        """Median and 99th percentile of the last 256 round trips in seconds; NaN before the
        first."""
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
            except RuntimeError:  # the server refused this observation; the connection lives
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
    """Closes the socket of openpi's client, which has no `close` of its own."""
    socket = getattr(client, "_ws", None)
    if socket is not None:
        socket.close()
