"""How often the scripted expert does LIBERO's pick-and-place tasks from their fixed start states.

    python -m experiments.studies.libero_expert

Without pictures; success is LIBERO's own test. Tasks that ask for more than picking and placing are
left out. Interrupt it at will: episodes that ran are kept. About 4 s an episode on one free CPU
core.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro
from tqdm import tqdm

from experiments.record import command, write_results
from mistjax.envs.libero.env import LiberoEnv
from mistjax.envs.libero.expert import Expert, picks_and_places
from mistjax.stats import Rate


@dataclasses.dataclass(frozen=True)
class Config:
    """What is tried.

    Attributes:
        suites: installed suites.
        starts: the first so many fixed start states of each task.
        results: where the table is kept, and where an interrupted run goes on.
    """

    suites: tuple[str, ...] = ("libero_object", "libero_spatial", "libero_goal", "libero_10")
    starts: int = 10
    results: Path = Path("experiments/results/libero_expert.json")


Steps = dict[str, dict[str, list[int | None]]]
"""Suite -> task -> the step at which each episode succeeded, None where it did not."""


def run(config: Config) -> Steps:
    """Plays what is missing."""
    known = json.loads(config.results.read_text())["steps"] if config.results.exists() else {}
    for suite in config.suites:
        env = LiberoEnv(suite, pictures=False)
        tasks = {k: task for k, task in enumerate(env.tasks) if picks_and_places(task.problem)}
        steps = known.setdefault(suite, {})
        done = sum(len(steps.get(task.name, ())) for task in tasks.values())
        bar = tqdm(total=len(tasks) * config.starts, initial=done, desc=suite, unit="ep")
        for task_id, task in tasks.items():
            tried = steps.setdefault(task.name, [])
            for start in range(len(tried), config.starts):
                env.reset(seed=start, options={"task_id": task_id})
                tried.append(episode(env))
                write(config, known)
                bar.update()
        env.close()
    write(config, known)
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


def write(config: Config, steps: Steps) -> None:
    """The results so far."""
    content = {
        "command": command("experiments.studies.libero_expert"),
        "starts": config.starts,
        "steps": steps,
    }
    write_results(config.results, content)


def main(config: Config) -> None:
    for suite, tasks in run(config).items():
        for task, done in tasks.items():
            print(f"{suite}, {task}: {rate(done)}")


if __name__ == "__main__":
    main(tyro.cli(Config))
