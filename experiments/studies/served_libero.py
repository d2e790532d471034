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
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro

from experiments.record import command, write_results
from experiments.served import Ask, play, server, stock_client
from mistjax.demo import SHIPPED
from mistjax.envs.faults.battery import Mixture
from mistjax.envs.faults.make import make_faulty
from mistjax.rollouts.plan import LIBERO_ENV

CLEAN = "none"


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
    first_start: int = 10
    starts: int = 4
    faults: tuple[str, ...] = ("front_frozen", "wrist_frozen", "state_frozen")
    onset: int = 30
    execute: int = 5
    image_size: int = 64
    shadow: bool = False
    results: Path | None = None


def episode(ask: Ask, env: gym.Env, start: int) -> dict[str, Any]:
    """One episode: how it ended, and the first reply that called an input unsound."""
    replies, info = play(ask, env, start)
    alarms = (
        {"step": step, **{k: reply[f"mist/{k}"] for k in ("input", "explanation")}}
        for step, reply in enumerate(replies)
        if reply["mist/unsound"]
    )
    return {
        "start": start,
        "success": bool(info["success"]),
        "steps": len(replies),
        "alarm": next(alarms, None),
    }


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
    words = [config.policy, "--mist", config.mist, "--max-batch", 1]
    words += ["--deadline-ms", 20_000, "--watchdog-ms", 30_000, *["--shadow"] * config.shadow]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryDirectory())
        _, port = stack.enter_context(server(*words, "--out", out))
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
