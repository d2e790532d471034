"""A robot's processes: `mistjax serve` in one, openpi's own client in another.

The client runs under a Python of its own, MISTJAX_CLIENT, which has openpi-client and NumPy 1.
"""

from __future__ import annotations

import contextlib
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from mistjax.models.transforms import flatten
from mistjax.serve.frames import pack, unpack

Ask = Callable[..., dict[str, Any]]
"""`ask(what, observation)`: see `experiments.studies.stock_client`."""


@contextlib.contextmanager
def server(*words: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`mistjax serve` with these arguments: its process, and the free port that it took.

    Raises:
        RuntimeError: it does not start, or SIGINT does not end it with exit code 0.
    """
    arguments = [*map(str, words), "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mistjax.cli", "serve", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"ws://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise RuntimeError(f"the server did not start; it says {line.strip()!r}.")
        yield process, int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
        process.stdout.close()
    if code:
        raise RuntimeError(f"the server ended with exit code {code}.")


@contextlib.contextmanager
def stock_client(python: str, port: int, execute: int) -> Iterator[Ask]:
    """openpi's client, connected to a port of this machine; its broker executes so many actions of
    a chunk. What it raises is raised here as a RuntimeError.
    """
    script = Path(__file__).parent / "studies" / "stock_client.py"
    process = subprocess.Popen(
        [python, str(script), str(port), str(execute)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    to, back = process.stdin, process.stdout
    assert to is not None and back is not None

    def ask(what: str, observation: Any = None) -> dict[str, Any]:
        body = pack({"what": what, "observation": observation})
        to.write(struct.pack("<I", len(body)) + body)
        to.flush()
        reply = unpack(back.read(struct.unpack("<I", back.read(4))[0]))
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    try:
        yield ask
    finally:
        to.close()
        process.wait(20)
        back.close()


def play(ask: Ask, env: gym.Env, seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One episode: the reply at every control step, and the environment's last `info`.

    Raises:
        RuntimeError: an observation was refused, or the simulator crashed.
    """
    raw, info = env.reset(seed=seed)
    ask("reset")
    first: dict[str, Any] = {"mist/reset": True, "mist/seed": seed}
    replies: list[dict[str, Any]] = []
    over = False
    while not over:
        replies.append(ask("act", {**seen(raw), **first}))
        first = {}
        raw, _, terminated, truncated, info = env.step(replies[-1]["actions"])
        over = terminated or truncated
    if info.get("error"):
        raise RuntimeError(f"episode {seed} crashed: {info['error']}")
    return replies, info


def seen(raw: Any) -> dict[str, Any]:
    """What of a raw observation is sent: arrays and text."""
    return {k: v for k, v in flatten(raw).items() if isinstance(v, np.ndarray | str)}
