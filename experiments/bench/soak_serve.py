"""Many clients for minutes, some of them hostile: does anyone else notice, does memory grow?

    python -m experiments.bench.soak_serve --results experiments/results/soak_serve.json

`mistjax serve` runs in a process of its own, monitored. Honest clients play an ordinary episode of
the board again and again at a robot's rate. The hostile ones, over and over: `fuzzer` sends frames
that are none and observations that cannot be, `silent` asks without reading a reply, `vanishing`
connects and is gone in mid-handshake, mid-frame or mid-inference, or sends more than a frame may
hold. Memory is the server's resident set, once a second; its growth is from the median of the
second fifth of the time to that of the last.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from experiments.record import command, write_results
from experiments.served import server
from mistjax.compilation import enable_cache
from mistjax.demo import MIST, POLICY
from mistjax.policies.load import load_policy
from mistjax.serve.certify import SEED, ordinary
from mistjax.serve.frames import LARGEST, pack, unpack


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, and by how many.

    Attributes:
        policy, mist: what is served.
        seconds: of the whole.
        clients: at a time, the hostile ones included.
        hostile: how many of them.
        period_s: from one observation of an honest client to its next.
        max_batch, deadline_ms: of the server.
        seed: of what hostile clients send.
        results: JSON file to write.
    """

    policy: Path = POLICY
    mist: Path = MIST
    seconds: float = 300.0
    clients: int = 50
    hostile: int = 3
    period_s: float = 0.5
    max_batch: int = 16
    deadline_ms: float = 5000.0
    seed: int = 0
    results: Path | None = None


@dataclasses.dataclass
class Seen:
    """What came back: replies to honest clients, and counts of everything else by its name."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    said: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    memory: list[tuple[float, float]] = dataclasses.field(default_factory=list)


class Soak:
    """Clients of a port until a time.

    Args:
        config: see there.
        port: of the server.
        looks: an ordinary episode.
    """

    def __init__(self, config: Config, port: int, looks: list[dict[str, Any]]):
        self.config, self.port, self.looks = config, port, looks
        self.seen, self.rng = Seen(), np.random.default_rng(config.seed)
        self.ends = 0.0

    async def run(self, process: int) -> Seen:
        """All clients; the memory of a process meanwhile."""
        self.ends = time.monotonic() + self.config.seconds
        kinds = (self.fuzzer, self.silent, self.vanishing)
        hostile = [kinds[i % 3] for i in range(self.config.hostile)]
        honest = self.config.clients - self.config.hostile
        await asyncio.gather(
            *(self.honest(i) for i in range(honest)),
            *(self.again(kind) for kind in hostile),
            self.watch(process),
        )
        return self.seen

    def line(self, **options: Any) -> connect:
        """A connection to the server."""
        address = f"ws://127.0.0.1:{self.port}"
        return connect(address, compression=None, max_size=None, proxy=None, **options)

    async def honest(self, number: int) -> None:
        """An honest client: what is not as it should be is counted under a name of its own."""
        await asyncio.sleep(self.config.period_s * number / self.config.clients)
        async with self.line() as line:
            await line.recv()
            i = 0
            while (start := time.monotonic()) < self.ends:
                raw = self.looks[i % len(self.looks)]
                if i % len(self.looks) == 0:
                    raw = {**raw, "mist/reset": True, "mist/seed": SEED}
                await line.send(pack(raw))
                reply = await line.recv()
                self.seen.seconds.append(time.monotonic() - start)
                if isinstance(reply, str):
                    self.seen.said["honest refused"] += 1
                else:
                    said = unpack(reply)
                    self.seen.said[f"honest: {said['mist/decision']}"] += 1
                    self.seen.said["honest: alarms"] += bool(said["mist/alarm"])
                i += 1
                left = start + self.config.period_s - time.monotonic()
                await asyncio.sleep(max(left, 0))

    async def again(self, attack: Callable[[], Awaitable[None]]) -> None:
        """A hostile client: attacks until the time is over, and connects again when cut off."""
        while time.monotonic() < self.ends:
            name = attack.__name__
            try:
                await asyncio.wait_for(attack(), max(self.ends - time.monotonic(), 0.1))
            except (WebSocketException, OSError, EOFError, AttributeError):
                # The last one is websockets' own, when it closes a line that was lost.
                self.seen.said[f"{name}: cut off"] += time.monotonic() < self.ends
            await asyncio.sleep(0.05)

    def nonsense(self) -> bytes | str:
        """A frame that no server should answer with an action."""
        rng, raw = self.rng, dict(self.looks[0])
        kind = rng.integers(7)
        if kind == 0:
            return rng.bytes(int(rng.integers(1, 4096)))
        if kind == 1:
            return "words " * int(rng.integers(1, 100))
        if kind == 2:
            whole = pack(raw)
            return whole[: rng.integers(1, len(whole))]
        if kind == 3:
            whole = bytearray(pack(raw))
            whole[rng.integers(len(whole) // 100)] ^= 0xFF  # in its keys and shapes
            return bytes(whole)
        key = str(rng.choice(sorted(set(raw) - {"prompt"})))
        shape = tuple(rng.integers(0, 90, int(rng.integers(1, 4))))
        odd = [np.full(5, np.nan, np.float32), np.zeros(shape, np.float64), None, "text", -1, [[]]]
        raw[key] = odd[rng.integers(len(odd))]
        return pack(raw)

    async def fuzzer(self) -> None:
        """Frames that are none."""
        async with self.line() as line:
            await line.recv()
            for _ in range(100):
                await line.send(self.nonsense())
                reply = await line.recv()
                what = "refused in a sentence" if isinstance(reply, str) else "answered"
                self.seen.said[f"fuzzer: {what}"] += 1
                await asyncio.sleep(0.01)

    async def silent(self) -> None:
        """Asks, and reads nothing."""
        async with self.line(max_queue=1) as line:
            await line.recv()
            frame = pack(self.looks[0])
            while True:
                await line.send(frame)
                self.seen.said["silent: sent"] += 1
                await asyncio.sleep(0.02)

    async def vanishing(self) -> None:
        """Is gone in the middle of something."""
        kind = int(self.rng.integers(4))
        self.seen.said["vanishing: tried"] += 1
        if kind == 0:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n")
            await writer.drain()
            writer.transport.abort()
            return
        async with self.line() as line:
            if kind == 1:
                await line.send(pack(self.looks[0]))
            elif kind == 2:
                await self._half(line)
            else:
                await line.send(bytes(LARGEST + 1))
                await line.recv()
                await line.recv()
            line.transport.abort()

    async def _half(self, line: ClientConnection) -> None:
        """The head of a binary frame of 1,000,000 bytes, and 10 of them."""
        line.transport.write(b"\x82\xff" + (1_000_000).to_bytes(8, "big") + bytes(4) + bytes(10))
        await asyncio.sleep(0.01)

    async def watch(self, process: int) -> None:
        """The resident set of a process, MB."""
        start = time.monotonic()
        while (now := time.monotonic()) < self.ends:
            pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            self.seen.memory.append((now - start, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
            await asyncio.sleep(1.0)


def fifth(memory: list[tuple[float, float]], number: int) -> float:
    """The median of a fifth of the time, the first one is 0."""
    part = len(memory) / 5
    return float(np.median([mb for _, mb in memory[int(number * part) : int((number + 1) * part)]]))


def main(config: Config) -> dict[str, Any]:
    """Runs, prints, writes."""
    looks: Any = ordinary(load_policy(config.policy))
    words = [config.policy, "--mist", config.mist, "--max-batch", config.max_batch]
    words += ["--deadline-ms", config.deadline_ms, "--watchdog-ms", 2 * config.deadline_ms]
    with tempfile.TemporaryDirectory() as out, server(*words, "--out", out) as (process, port):
        seen = asyncio.run(Soak(config, port, looks).run(process.pid))
        alive = process.poll() is None
    p50, p99 = 1e3 * np.percentile(seen.seconds, (50, 99))
    results = {
        "command": command("experiments.bench.soak_serve"),
        "load": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "seconds": config.seconds,
        "clients": config.clients,
        "hostile": config.hostile,
        "alive": alive,
        "requests": len(seen.seconds),
        "p50_ms": p50,
        "p99_ms": p99,
        "said": {k: n for k, n in sorted(seen.said.items()) if n or k == "honest: alarms"},
        "memory_mb": [fifth(seen.memory, i) for i in range(5)],
        "growth_mb": fifth(seen.memory, 4) - fifth(seen.memory, 1),
    }
    print(json.dumps(results, indent=1))
    write_results(config.results, results)
    return results


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
