"""Does a robot see the alarm? LIBERO through `mistjax serve`, played by openpi's own client.

    MISTJAX_CLIENT=PYTHON python -m experiments.studies.served_libero --mist runs/libero/mist

Three processes, as on a robot: `mistjax serve` with the shipped policy and a monitor of LIBERO (its
steps are in docs/libero.md), openpi's unchanged `WebsocketClientPolicy` and `ActionChunkBroker` run
by PYTHON, which has openpi-client and NumPy 1, and this one, the robot: it steps the simulator with
the actions that the client gives. Every start is played without a fault, as the control, and with
each of the faults; what is kept is when a reply said `mist/unsound` first, and which input it named
then. The starts are those that neither the monitor's fitting nor its calibration used, where
`first_start` says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

from experiments.record import command, write_results
from mistjax.demo import SHIPPED
from mistjax.envs.faults.battery import Mixture
from mistjax.envs.faults.make import make_faulty
from mistjax.models.transforms import flatten
from mistjax.rollouts.plan import LIBERO_ENV
from mistjax.serve.frames import pack, unpack

CLEAN = "none"
Ask = Callable[[str, Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is played.

    Attributes:
        mist: the monitor's folder.
        policy: that is served.
        suite, task: of LIBERO.
        first_start, starts: which fixed starts of the task.
        faults: each at full strength, in every episode.
        onset: control step at which a fault begins.
        execute: actions of a chunk that the client executes.
        image_size: pixels per side, of the policy.
        shadow: the monitor only watches.
        results: JSON file to write.
    """

    mist: Path
    policy: Path = SHIPPED / "libero_pi0"
    suite: str = "libero_object"
    task: int = 0
    first_start: int = 20
    starts: int = 4
    faults: tuple[str, ...] = ("front_frozen", "wrist_frozen", "state_frozen")
    onset: int = 30
    execute: int = 5
    image_size: int = 64
    shadow: bool = False
    results: Path | None = None


@contextlib.contextmanager
def server(config: Config, out: Path) -> Iterator[int]:
    """The port of `mistjax serve` in a process of its own; it must end well."""
    words = ["serve", config.policy, "--mist", config.mist, "--port", "0", "--max-batch", "1"]
    words += ["--deadline-ms", "20000", "--watchdog-ms", "30000", "--out", out]
    words += ["--shadow"] * config.shadow
    process = subprocess.Popen(
        [sys.executable, "-m", "mistjax.cli", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"ws://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise RuntimeError(f"the server did not start; it says {line.strip()!r}.")
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)
        process.stdout.close()
    if code:
        raise RuntimeError(f"the server ended with exit code {code}.")


@contextlib.contextmanager
def stock_client(python: str, port: int, execute: int) -> Iterator[Ask]:
    """`ask(what, observation)` of openpi's client in a Python that has it; see `stock_client`."""
    script = Path(__file__).with_name("stock_client.py")
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


def episode(ask: Ask, env: gym.Env, seed: int) -> dict[str, Any]:
    """One episode; what the replies said of it."""
    raw, info = env.reset(seed=seed)
    ask("reset", None)
    first: dict[str, Any] = {"mist/reset": True, "mist/seed": seed}
    alarm, step, over = None, 0, False
    while not over:
        seen = {k: v for k, v in flatten(raw).items() if isinstance(v, np.ndarray | str)}
        reply = ask("act", {**seen, **first})
        first = {}
        if alarm is None and reply["mist/unsound"]:
            alarm = {"step": step, **{k: reply[f"mist/{k}"] for k in ("input", "explanation")}}
        raw, _, terminated, truncated, info = env.step(reply["actions"])
        step, over = step + 1, terminated or truncated
    if info.get("error"):
        raise RuntimeError(f"start {seed} crashed: {info['error']}")
    return {"start": seed, "success": bool(info["success"]), "steps": step, "alarm": alarm}


def main(config: Config) -> dict[str, Any]:
    """Plays, prints, and writes after every condition.

    Raises:
        ValueError: MISTJAX_CLIENT is not set.
        RuntimeError: the server ended, refused an observation, or the simulator crashed.
    """
    python = os.environ.get("MISTJAX_CLIENT")
    if python is None:
        raise ValueError(
            "MISTJAX_CLIENT is not set: give a Python that has openpi-client, e.g. the one that "
            "`make test-serve` installs."
        )
    results: dict[str, Any] = {
        "command": command("experiments.studies.served_libero"),
        "suite": config.suite,
        "task": config.task,
        "onset": config.onset,
        "conditions": {},
    }
    with contextlib.ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(server(config, out / "serve"))
        ask = stack.enter_context(stock_client(python, port, config.execute))
        for fault in (CLEAN, *config.faults):
            sound = Mixture(sensor_noise=False)
            at = {"onset": (config.onset, config.onset), "sensor_noise": False}
            mixture = sound if fault == CLEAN else Mixture.single(fault, **at)
            env = make_faulty(
                LIBERO_ENV, mixture.to_json(), config.execute, suite=config.suite,
                task_id=config.task, image_size=config.image_size, reflections=False,
            )  # fmt: skip
            found = []
            for start in range(config.first_start, config.first_start + config.starts):
                found.append(episode(ask, env, start))
                print(fault, found[-1], flush=True)
            env.close()
            results["conditions"][fault] = found
            write_results(config.results, results)
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
