"""What a policy server costs: round trips with 1, 8 and 32 clients, and inferences with RTC.

    OPENPI_SRC=FOLDER python -m experiments.bench.bench_serve \
        --results experiments/results/bench_serve.json

Clients ask without a pause, each an ordinary episode of the board again and again, from a process
of their own; the servers, which are in this one, take turns in random order. A time is from the
request to the reply, CPU that of this process, so of the server alone. openpi's server, of the
checkout OPENPI_SRC, runs the same bare policy, one request at a time; without a checkout it is left
out. `in process` is the policy called in a loop, with nobody between.

Ratios are medians over turns of what the arm took to what its baseline took in the same turn, with
a 95% bootstrap over turns. RTC is timed apart, at a delay of 2, one observation at a time.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.bench.clients import ask
from experiments.bench.turns import ratio, take_turns
from experiments.record import command, write_results
from mistjax.compilation import enable_cache
from mistjax.demo import MIST, POLICY
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy, RawObs
from mistjax.realtime.delayed import Delayed
from mistjax.recover.artifact import load_mist
from mistjax.rollouts.loop import episode_keys
from mistjax.serve.certify import SEED, ordinary
from mistjax.serve.frames import pack
from mistjax.serve.promises import infer
from mistjax.serve.server import serving
from mistjax.serve.service import Service
from mistjax.serve.settings import Settings

Taken = tuple[list[tuple[float, bool]], float]
MONITORED, THROUGH, BARE, OPENPI = "monitored", "pass-through", "bare", "openpi's, bare"
ALONE, ALONE_MONITORED = "in process, bare", "in process, monitored"
RTC = ("naive", "rtc", "rtc_identity", "rtc_closed")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        policy, mist: what is served.
        clients: how many ask at a time.
        requests: of an arm in one turn, by all its clients together; each makes at least two.
        turns: of every arm.
        max_batch: of our servers.
        seed: of the order of the arms, and of the bootstrap.
        results: JSON file to write.
    """

    policy: Path = POLICY
    mist: Path = MIST
    clients: tuple[int, ...] = (1, 8, 32)
    requests: int = 64
    turns: int = 12
    max_batch: int = 32
    seed: int = 0
    results: Path | None = None


def in_process(policy: Policy, looks: Sequence[RawObs]) -> Callable[[int], Taken]:
    """`play(requests)`: the policy in a loop over episodes."""

    def play(requests: int) -> Taken:
        found, state, began = [], policy.initial_state(1), time.perf_counter()
        for i in range(requests):
            inference = i % len(looks)
            state = policy.initial_state(1) if inference == 0 else state
            start = time.perf_counter()
            _, state = infer(policy, looks[inference], SEED, inference, state)
            jax.block_until_ready(state)
            found.append((time.perf_counter() - start, False))
        return found, time.perf_counter() - began

    return play


@contextlib.contextmanager
def openpi_server(policy: Policy, source: Path) -> Iterator[int]:
    """openpi's own server of the bare policy, in this process as ours are; its port."""
    for folder in ("packages/openpi-client/src", "src"):
        sys.path.append(str(source / folder))
    from openpi.serving.websocket_policy_server import WebsocketPolicyServer

    class Bare:
        def infer(self, raw: Any) -> dict[str, Any]:
            keys = episode_keys(np.array([0]), np.array([0]))
            return {"actions": policy.finish(policy.sample(policy.prepare([raw]), keys), [raw])[0]}

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server: Any = WebsocketPolicyServer(Bare(), "127.0.0.1", port)  # type: ignore[arg-type]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.1)
    yield port


def arms(
    config: Config, stack: contextlib.ExitStack, pool: concurrent.futures.Executor
) -> dict[tuple[str, int], Callable[[int], Taken]]:
    """(arm, clients) -> `play(requests of all clients)`."""
    bare = load_policy(config.policy)
    monitored = load_mist(config.mist, bare)
    looks = ordinary(bare)
    began = {"mist/reset": True, "mist/seed": SEED}
    found: dict[tuple[str, int], Callable[[int], Taken]] = {
        (ALONE, 1): in_process(bare, looks),
        (ALONE_MONITORED, 1): in_process(monitored, looks),
    }
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def add(name: str, port: int, first: dict[str, Any]) -> None:
        frames = [pack({**raw, **(first if i == 0 else {})}) for i, raw in enumerate(looks)]
        for clients in config.clients:

            def play(requests: int, clients: int = clients) -> Taken:
                each = max(requests // clients, 2)
                return pool.submit(ask, port, frames, clients, each).result()

            found[name, clients] = play

    for name, policy in ((BARE, None), (MONITORED, monitored)):
        settings = Settings(
            port=0,
            max_batch=config.max_batch,
            deadline_ms=20_000.0,
            watchdog_ms=30_000.0,
            out=folder / name,
        )
        service = Service(bare, policy, settings)
        service.start()
        port = stack.enter_context(serving(service)).port
        assert port is not None
        add(name, port, began)
        if policy is not None:
            add(THROUGH, port, {**began, "mist/pass_through": True})
    if source := os.environ.get("OPENPI_SRC"):
        add(OPENPI, stack.enter_context(openpi_server(bare, Path(source))), {})
    else:
        print("OPENPI_SRC is not set, so openpi's own server is left out.")
    return found


def rtc_cost(config: Config, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What an inference takes with each kind of RTC, beside one without."""
    bare = load_policy(config.policy)
    raw = ordinary(bare)[0]
    keys = episode_keys(np.array([0]), np.array([0]))
    calls: dict[str, Callable[[], Any]] = {}
    for name in RTC:
        policy = Delayed.around(bare, name, 2)
        obs = policy.prepare([raw])
        state = policy.sample(obs, keys, state=policy.initial_state(1)).state
        calls[name] = lambda p=policy, o=obs, s=state: p.sample(o, keys, state=s).actions
    taken = take_turns(calls, turns=4 * config.turns, burst=8, warm=2, rng=rng)
    return [
        {
            "strategy": name,
            "ms": 1e3 * float(np.median(seconds[:, 0])),
            "wall": ratio(seconds[:, 0], taken["naive"][:, 0], rng),
            "cpu": ratio(seconds[:, 1], taken["naive"][:, 1], rng),
        }
        for name, seconds in taken.items()
    ]


def main(config: Config) -> dict[str, Any]:
    """Times, prints, writes."""
    rng = np.random.default_rng(config.seed)
    times: dict[tuple[str, int], list[list[float]]] = {}
    spans: dict[tuple[str, int], list[float]] = {}
    cpu: dict[tuple[str, int], list[float]] = {}
    alarms: dict[tuple[str, int], int] = {}
    spawned = multiprocessing.get_context("spawn")
    with (
        contextlib.ExitStack() as stack,
        concurrent.futures.ProcessPoolExecutor(1, mp_context=spawned) as pool,
    ):
        played = arms(config, stack, pool)
        for turn in range(-1, config.turns):  # the first one warms up
            for i in rng.permutation(len(played)):
                arm, play = list(played.items())[i]
                before = time.process_time()
                found, span = play(config.requests)
                spent = time.process_time() - before
                if turn < 0:
                    continue
                times.setdefault(arm, []).append([seconds for seconds, _ in found])
                spans.setdefault(arm, []).append(span / len(found))
                cpu.setdefault(arm, []).append(spent / len(found))
                alarms[arm] = alarms.get(arm, 0) + sum(alarm for _, alarm in found)

    def medians(arm: str) -> np.ndarray:
        return np.array([statistics.median(turn) for turn in times[arm, 1]])

    rows = []
    for name, clients in times:
        every = np.concatenate(times[name, clients])
        p50, p99 = 1e3 * np.percentile(every, (50, 99))
        rows.append(
            {
                "arm": name,
                "clients": clients,
                "n": len(every),
                "p50_ms": p50,
                "p99_ms": p99,
                "per_second": 1 / statistics.median(spans[name, clients]),
                "cpu_ms": 1e3 * statistics.median(cpu[name, clients]),
                "alarms": alarms[name, clients],
            }
        )
    most = max(config.clients)
    results = {
        "command": command("experiments.bench.bench_serve"),
        "load": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "rows": sorted(rows, key=lambda row: (row["clients"], row["p50_ms"])),
        "monitored_to_bare": ratio(medians(MONITORED), medians(BARE), rng),
        "monitored_to_bare_in_process": ratio(medians(ALONE_MONITORED), medians(ALONE), rng),
        "most_clients": most,
        "throughput": {
            name: ratio(np.array(spans[name, 1]), np.array(spans[name, most]), rng)
            for name in (BARE, MONITORED)
        },
        "rtc": rtc_cost(config, rng),
    }
    print(json.dumps(results, indent=1))
    write_results(config.results, results)
    return results


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
