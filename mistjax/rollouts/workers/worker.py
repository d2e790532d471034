"""Lines to the hosts of environments: in this process, or in processes that step them side by side.

`InlineWorker` is a host here, `ProcessWorker` one in a spawned process; `ray.RayWorker` is
one in a Ray actor. All answer alike, so where an environment runs makes no difference to an
episode. A process starts in 2 to 5 s.

Worker processes render on the CPU, so that the accelerator is the policy's alone. Messages between
the processes are pickled by `multiprocessing`; nothing of that is ever stored. What an environment
raises comes back as text, since exceptions of other libraries can seldom be rebuilt.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

from mistjax.rollouts.workers.host import Host, MakeEnv, Reply, Request

PATIENCE_S = 600.0  # a worker that is silent for longer is taken for dead


REBUILT = {
    kind.__name__: kind
    for kind in (FileNotFoundError, ImportError, ModuleNotFoundError, RuntimeError, ValueError)
}


class WorkerLost(Exception):
    """A worker died or went silent; says how."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An exception of `Host.make`, as text: its class, its message and its traceback."""

    kind: str
    message: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """`error`, while it is handled."""
        return cls(type(error).__name__, str(error), traceback.format_exc())

    def exception(self) -> Exception:
        """One of its class where that is in `REBUILT`, else a RuntimeError with its traceback."""
        if self.kind in REBUILT:
            return REBUILT[self.kind](self.message)
        return RuntimeError(f"a worker could not make its environment:\n{self.traceback}")


class Worker(Protocol):
    """The line to one host. Replies come in the order of the requests."""

    def send(self, requests: Sequence[Request]) -> None:
        """Sends requests; the replies to all earlier ones have been received."""
        ...

    def receive(self) -> Any:
        """The next reply. Raises what `Host.make` raised (see `Refusal`), or WorkerLost."""
        ...

    def close(self) -> None:
        """Ends the worker, whatever it is doing."""
        ...


class InlineWorker:
    """A host in this process: requests are carried out when their reply is asked for."""

    def __init__(self, make_env: MakeEnv):
        self._host = Host(make_env)
        self._requests: collections.deque[Request] = collections.deque()

    def send(self, requests: Sequence[Request]) -> None:
        self._requests.extend(requests)

    def receive(self) -> Any:
        method, arguments = self._requests.popleft()
        return getattr(self._host, method)(*arguments)

    def close(self) -> None:
        self._host.close()


class ProcessWorker:
    """A host in a spawned process (a fork would inherit GL contexts and XLA's threads).

    Raises:
        ValueError: `make_env` cannot be sent to another process.
    """

    def __init__(self, make_env: MakeEnv):
        try:
            pickle.dumps(make_env)
        except Exception as error:
            raise ValueError(
                f"{make_env!r} cannot be sent to a worker process ({error}): give a function that "
                "can be imported, or functools.partial of one."
            ) from error
        context = multiprocessing.get_context("spawn")
        self._line, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, make_env), daemon=True)
        self._process.start()
        far_end.close()

    def send(self, requests: Sequence[Request]) -> None:
        with contextlib.suppress(OSError):  # dead: `receive` says so
            self._line.send(list(requests))

    def receive(self) -> Any:
        try:
            if not self._line.poll(PATIENCE_S):
                raise WorkerLost(f"a worker process said nothing for {PATIENCE_S:g} s")
            answer = self._line.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise WorkerLost(f"a worker process died ({_exit(self._process.exitcode)})") from None
        if isinstance(answer, Refusal):
            raise answer.exception()
        return answer

    def close(self) -> None:
        self._line.close()  # an idle worker ends by itself
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def _serve(line: Any, make_env: MakeEnv) -> None:
    """The worker process. An interrupt is the business of the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cpu_only()
    host = Host(make_env)
    with contextlib.suppress(EOFError, OSError):
        while True:
            for method, arguments in line.recv():
                line.send_bytes(_payload(host, method, arguments))
    host.close()


def _payload(host: Host, method: str, arguments: tuple) -> bytes:
    """The pickled reply, or the pickled `Refusal` of `make`."""
    try:
        return pickle.dumps(getattr(host, method)(*arguments), protocol=5)
    except Exception as error:
        if method == "make":
            return pickle.dumps(Refusal.of(error))
        return pickle.dumps(Reply(error=traceback.format_exc()))  # the reply cannot be pickled


def cpu_only() -> None:
    """Settings of JAX in a worker, before it starts a backend."""
    import jax

    from mistjax.compilation import enable_cache

    jax.config.update("jax_platforms", "cpu")
    enable_cache()


def _exit(code: int | None) -> str:
    if code is None:
        return "it does not end"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
