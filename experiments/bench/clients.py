"""Clients of a policy server that ask without a pause, in a process of their own as on a robot."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence

from websockets.asyncio.client import connect

from mistjax.serve.frames import unpack


async def _client(port: int, frames: Sequence[bytes], requests: int) -> list[tuple[float, bool]]:
    """(seconds, whether there was an alarm) of each request."""
    found = []
    async with connect(
        f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None
    ) as line:
        await line.recv()
        for i in range(requests):
            start = time.perf_counter()
            await line.send(frames[i % len(frames)])
            reply = await line.recv()
            seconds = time.perf_counter() - start
            if isinstance(reply, str):
                raise RuntimeError(reply)
            said = unpack(reply)
            found.append((seconds, bool(said.get("mist/alarm", False))))
    return found


async def _all(
    port: int, frames: Sequence[bytes], clients: int, requests: int
) -> tuple[list[tuple[float, bool]], float]:
    start = time.perf_counter()
    found = await asyncio.gather(*(_client(port, frames, requests) for _ in range(clients)))
    return list(itertools.chain(*found)), time.perf_counter() - start


def ask(
    port: int, frames: Sequence[bytes], clients: int, requests: int
) -> tuple[list[tuple[float, bool]], float]:
    """(seconds and alarm of every request, seconds of all together).

    Args:
        port: of a server on this machine.
        frames: packed observations of an episode, played again and again by each client.
        clients: at a time.
        requests: of each client.

    Raises:
        RuntimeError: the server refused a request; with its sentence.
    """
    return asyncio.run(_all(port, frames, clients, requests))
