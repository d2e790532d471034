"""`RayWorker`: a host of environments in a Ray actor, on this machine or another of the cluster;
`spread`: compiled episodes in processes of the cluster.

Needs the extra `mistjax[ray]`. A cluster is joined when Ray finds one (`RAY_ADDRESS`), else Ray is
started on this machine for as long as this process lives.
"""

from __future__ import annotations

import collections
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mistjax.rollouts.workers import worker as workers
from mistjax.rollouts.workers.host import Host, MakeEnv, Request
from mistjax.rollouts.workers.worker import WorkerLost

START_ATTEMPTS = 4
SETTLE_S = 120.0  # Ray notices after some 15 s that a machine is gone
RETRIES = 3
"""Times that seeds are played again whose process or machine has died."""


def connect(count: int) -> None:
    """Joins or starts Ray.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the cluster has fewer CPUs than workers are wanted; they would wait forever.
    """
    ray = _ray()
    if not ray.is_initialized():
        start()
    available = int(ray.cluster_resources().get("CPU", 0))
    if count > available:
        raise ValueError(
            f"{count} Ray workers need a CPU each, and the cluster has {available}: use fewer "
            "workers, or more machines."
        )


def start(**options: Any) -> None:
    """`ray.init`, quietly. Ray gives up after 30 s, which a busy machine may need: on this machine
    it is started up to `START_ATTEMPTS` times."""
    ray, attempts = _ray(), 1
    if "RAY_ADDRESS" not in os.environ:
        options, attempts = {"include_dashboard": False, **options}, START_ATTEMPTS
    quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    for attempt in range(1, attempts + 1):
        try:
            with warnings.catch_warnings():  # Ray forks only to start its own programs
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                ray.init(**quiet, **options)
            return
        except Exception:
            ray.shutdown()
            if attempt == attempts:
                raise


class _ActorHost(Host):
    """A host whose process is an actor."""

    def __init__(self, make_env: MakeEnv):
        workers.cpu_only()
        super().__init__(make_env)


class RayWorker:
    """The line to one actor; see `Worker`.

    An actor has a CPU to itself. One that replaces another shares what the cluster still has, since
    a CPU may be gone with the other's machine.
    """

    def __init__(self, make_env: MakeEnv, *, replaces: bool = False):
        actor = _ray().remote(num_cpus=0 if replaces else 1, max_restarts=0)(_ActorHost)
        self._actor = _answering(actor, make_env) if replaces else actor.remote(make_env)
        self._pending: collections.deque[Any] = collections.deque()

    def send(self, requests: Sequence[Request]) -> None:
        for method, arguments in requests:
            self._pending.append(getattr(self._actor, method).remote(*arguments))

    def receive(self) -> Any:
        exceptions = _ray().exceptions
        try:
            return _ray().get(self._pending.popleft(), timeout=workers.PATIENCE_S)
        except exceptions.GetTimeoutError:
            raise WorkerLost(f"a Ray worker said nothing for {workers.PATIENCE_S:g} s") from None
        except (exceptions.RayActorError, exceptions.ObjectLostError) as error:
            # An answer above 100 kB, a picture, stays on the worker's machine and is lost with it.
            raise WorkerLost(f"a Ray worker died ({str(error).splitlines()[0]})") from None
        except exceptions.RayTaskError as error:
            raise (error.cause or error) from None

    def close(self) -> None:
        if _ray().is_initialized():
            _ray().kill(self._actor)


def _answering(actor: Any, make_env: MakeEnv) -> Any:
    """An actor that answers. Until Ray notices a machine's death, it starts actors there."""
    ray, end = _ray(), time.monotonic() + SETTLE_S
    while True:
        made = actor.remote(make_env)
        try:
            ray.get(made.__ray_ready__.remote(), timeout=workers.PATIENCE_S)
            return made
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            if time.monotonic() > end:
                raise RuntimeError(
                    f"no Ray actor answered in place of a dead one for {SETTLE_S:g} s "
                    f"({str(error).splitlines()[0]}): the same call goes on with what is missing."
                ) from None
            time.sleep(1)


def spread(
    play: Callable[[Sequence[int]], Iterable[Any]],
    chunks: Sequence[Sequence[int]],
    workers: int,
    *,
    devices: int = 1,
) -> Iterator[list[Any]]:
    """What `play` yields of each chunk of seeds, as soon as one has been played.

    Args:
        play: can be sent to another process; its answer depends on the seeds alone.
        chunks: seeds that are played in one piece. Those that a process or a machine takes down
            with it are played again from their beginning, so that each is handed on once.
        workers: how many are played at a time.
        devices: GPUs of each, where the cluster has any.

    Raises:
        ImportError, ValueError: see `connect`.
        RuntimeError: the processes that played a chunk died `RETRIES` + 1 times.
        Exception: whatever `play` raises.
    """
    ray = _ray()
    connect(workers)
    gpus = devices if ray.cluster_resources().get("GPU", 0) else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_played)
    shared, waiting, running = ray.put(play), collections.deque(chunks), []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(task.remote(shared, waiting.popleft()))
            (done,), running = ray.wait(running)
            try:
                yield ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
            except ray.exceptions.RayError as error:
                raise RuntimeError(
                    f"a process on the Ray cluster died {RETRIES + 1} times "
                    f"({str(error).splitlines()[0]}): the same call goes on with what is missing."
                ) from None
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _played(play: Callable[[Sequence[int]], Iterable[Any]], seeds: Sequence[int]) -> list[Any]:
    from mistjax.compilation import enable_cache

    enable_cache()
    return list(play(seeds))


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("Ray workers need Ray: pip install 'mistjax[ray]'.") from error
    return ray
