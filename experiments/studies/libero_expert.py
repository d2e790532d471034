"""How often the scripted expert does LIBERO's pick-and-place tasks from their fixed start states.

    python -m experiments.studies.libero_expert

Without pictures; success is LIBERO's own test. Interrupt it at will: episodes that ran are kept.
About 4 s an episode on one free CPU core.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro
from tqdm import tqdm

from experiments.record import write_results
from mistjax.envs.libero.env import LiberoEnv
from mistjax.envs.libero.expert import Expert
from mistjax.stats import Rate


@dataclasses.dataclass(frozen=True)
class Config:
    """What is tried.

    Attributes:
        suite: an installed suite whose tasks are single pick-and-places.
        starts: the first so many fixed start states of each task.
        out: results, and where an interrupted run goes on.
    """

    suite: str = "libero_object"
    starts: int = 10
    out: Path = Path("experiments/results/libero_expert.json")


def run(config: Config) -> dict[str, list[int | None]]:
    """Task -> the step at which each episode succeeded, None where it did not."""
    known = json.loads(config.out.read_text())["steps"] if config.out.exists() else {}
    env = LiberoEnv(config.suite, pictures=False)
    done = sum(map(len, known.values()))
    bar = tqdm(total=len(env.tasks) * config.starts, initial=done, unit="ep")
    for task_id, task in enumerate(env.tasks):
        steps = known.setdefault(task.name, [])
        for start in range(len(steps), config.starts):
            env.reset(seed=start, options={"task_id": task_id})
            steps.append(episode(env))
            write(config, known)
            bar.update()
    env.close()
    return known


def episode(env: LiberoEnv) -> int | None:
    """Plays the episode that was just reset to its end."""
    expert = Expert(env.simulator)
    while True:
        *_, success, truncated, info = env.step(expert.action())
        if info["error"]:
            raise RuntimeError(f"{info['task']}, start {info['init_state']}: {info['error']}")
        if success or truncated:
            return info["step"] if success else None


def rate(done: list[int | None]) -> Rate:
    """How many of the episodes succeeded."""
    return Rate(sum(step is not None for step in done), len(done))


def write(config: Config, steps: dict[str, list[int | None]]) -> None:
    """The results so far."""
    rates = {
        task: Rate(sum(s is not None for s in done), len(done)) for task, done in steps.items()
    }
    settings = {"suite": config.suite, "starts": config.starts}
    table = {task: {"k": r.k, "n": r.n, "wilson95": r.interval} for task, r in rates.items()}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"config": settings, "success": table, "steps": steps}
    write_results(config.out, content)


def main(config: Config) -> None:
    for task, done in run(config).items():
        print(f"{task}: {rate(done)}")


if __name__ == "__main__":
    main(tyro.cli(Config))
