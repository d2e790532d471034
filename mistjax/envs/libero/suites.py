"""Suites of LIBERO tasks: the five installed ones, LIBERO-PRO's sixteen, and any published folder
in the same layout.

Step limits are those that openpi and OpenVLA evaluate with: the longest demonstration of a suite
plus a margin.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mistjax.envs.libero.bddl import Problem
from mistjax.envs.libero.init_states import read_init_states
from mistjax.envs.libero.installation import package, task_map
from mistjax.envs.libero.pro import PRO_SUITES, base_of, files
from mistjax.untrusted import read_text, reading

MAX_STEPS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
SUITES = tuple(MAX_STEPS)
SETTLE_STEPS = 10  # as evaluations do; in LIVING_ROOM_SCENE2 tall things still fall for five more


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite, name: which task; the name is that of its files.
        prompt: the instruction as evaluations give it to policies.
        problem: scene, start and goal.
        init_file: its fixed start states; None if start states are drawn from the problem.
        max_steps: step limit.
    """

    suite: str
    name: str
    prompt: str
    problem: Problem
    init_file: Path | None
    max_steps: int

    def named_by(self, prompts: str) -> Task:
        """The same task with its instruction taken from the file's `name`, or from its `text`."""
        said = prompt_of(self.name) if prompts == "name" else self.problem.language
        return dataclasses.replace(self, prompt=said)

    def init_states(self) -> Float[np.ndarray, "states size"] | None:
        """The fixed start states, each (time, qpos, qvel)."""
        return None if self.init_file is None else read_init_states(self.init_file)


def prompt_of(name: str) -> str:
    """The instruction in a task's file name, after the scene's name if there is one."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")


def check_suite(name: str) -> None:
    """ValueError unless a suite has this name, or is a folder."""
    if name not in (*SUITES, *PRO_SUITES) and not Path(name).is_dir():
        raise ValueError(
            f"unknown suite {name!r}; expected one of {', '.join(SUITES)}, one of LIBERO-PRO's "
            f"such as {PRO_SUITES[0]}, or a folder of .bddl files."
        )


@functools.cache
def suite(name: str) -> tuple[Task, ...]:
    """The tasks of a suite in LIBERO's order; of a folder see `published`.

    Raises:
        ValueError: an unknown suite.
        ImportError: LIBERO is not installed.
        FileNotFoundError: LIBERO-PRO's suites were not fetched.
    """
    check_suite(name)
    if name in PRO_SUITES:
        tasks = {task.name: task for task in published(*files(name))}
        return tuple(tasks[task] for task in task_map()[base_of(name)])
    if name not in SUITES:
        return published(name)
    bddl, init = package() / "bddl_files" / name, package() / "init_files" / name
    return tuple(
        Task(
            suite=name,
            name=task,
            prompt=prompt_of(task),
            problem=Problem.parse(read_text(bddl / f"{task}.bddl")),
            init_file=init / f"{task}.pruned_init",
            max_steps=MAX_STEPS[name],
        )
        for task in task_map()[name]
    )


def published(
    bddl_folder: str | Path, init_folder: str | Path | None = None, *, max_steps: int | None = None
) -> tuple[Task, ...]:
    """The tasks of a folder of BDDL files, such as LIBERO-PRO's `libero_object_swap`.

    Nothing of a file is run: start states are read as data, and scenes are built from what
    `Problem` makes of the text. The prompt is the file's own `:language`, which is what LIBERO-PRO
    rewrites.

    Args:
        bddl_folder: of `.bddl` files, one per task, in the order of their names.
        init_folder: start states of the same names, `.pruned_init`, `.init` or
            `.pruned_init.npz`; a task without one draws its starts from its regions. None takes the
            folder beside it in the published layout (`bddl_files/NAME`, `init_files/NAME`), if any.
        max_steps: step limit; None takes that of the suite whose name the folder's begins with.

    Raises:
        FileNotFoundError: a folder without tasks.
        ValueError: a file that is not a LIBERO task, or an unknown step limit.
    """
    folder = Path(bddl_folder).absolute()
    if init_folder is None and folder.parent.name == "bddl_files":
        init_folder = folder.parents[1] / "init_files" / folder.name
    files = sorted(folder.glob("*.bddl"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .bddl files.")
    if max_steps is None:
        base = [name for name in SUITES if folder.name.startswith(name)]
        if not base:
            raise ValueError(
                f"{folder} has no step limit to go by: expected max_steps, or a folder whose name "
                f"begins with that of the suite it varies ({', '.join(SUITES)})."
            )
        max_steps = MAX_STEPS[base[0]]
    return tuple(_published(path, init_folder, max_steps) for path in files)


def _published(path: Path, init_folder: str | Path | None, max_steps: int) -> Task:
    with reading(path, "a LIBERO task"):
        problem = Problem.parse(read_text(path))
    init = None
    if init_folder is not None:
        names = [f"{path.stem}{end}" for end in (".pruned_init", ".init", ".pruned_init.npz")]
        init = next((p for n in names if (p := Path(init_folder) / n).exists()), None)
    return Task(path.parent.name, path.stem, problem.language, problem, init, max_steps)
