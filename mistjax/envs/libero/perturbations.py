"""The five dimensions of LIBERO-PRO, made from a task's own BDDL and the installed assets.

Source: arXiv 2510.03827. Its published files are other draws of the same dimensions (load them with
`suites.published`); scores on these are comparable with each other, not with the paper's table.

`perturbation={name: value}` in an environment's reset options. A value is a kind, such as
{"position": "swap"}, or a number: 0 changes nothing, and any other takes the default kind, with
the number as its strength where it has one.

- object: "tint" (strength) colours the asked object; "category" puts one of its family in its place
- position: "shift" (strength) moves its start by up to 12 cm; "swap" exchanges it with another's
- semantic: "paraphrase", or "0", "1", "2" for one of them
- task: "goal" asks for what another task of the suite asks for in this scene; "target" asks for
  another object
- environment: "style" changes floor and walls, "workspace" the table

Only "object", "position" and "environment" change the scene, and then the start is drawn from the
regions; "tint", "style", "semantic" and "task" keep the fixed start state.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mistjax.envs.libero import changes
from mistjax.envs.libero import scene_changes as scenes
from mistjax.envs.libero.changes import Change, Rng
from mistjax.envs.libero.suites import Task

Kind = Callable[[Change, float, Rng, Sequence[Task]], Change]


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A dimension: its kinds by name, the default first."""

    name: str
    kinds: Mapping[str, Kind]


PERTURBATIONS = {
    p.name: p
    for p in (
        Perturbation("object", {"tint": scenes.tint, "category": scenes.category}),
        Perturbation("position", {"shift": scenes.shift, "swap": scenes.swap}),
        Perturbation(
            "semantic",
            {"paraphrase": changes.reword} | {str(i): changes.wording(i) for i in range(3)},
        ),
        Perturbation("task", {"goal": changes.goal, "target": changes.target}),
        Perturbation("environment", {"style": scenes.style, "workspace": scenes.workspace}),
    )
}


def perturb(
    task: Task, requested: Mapping[str, Any], rng: Rng, suite: Sequence[Task] = ()
) -> Change:
    """Applies the named perturbations in their given order.

    Args:
        task: what is perturbed.
        requested: name -> kind or strength.
        rng: for what is drawn.
        suite: the tasks of its suite, where other goals come from.

    Raises:
        ValueError: an unknown name or kind, a strength outside [0, 1], or a change that this task
            does not allow (no other object to swap with, say).
    """
    check(requested)
    change = Change(task.problem, task.prompt)
    for name, value in requested.items():
        kind, strength = _kind(name, value)
        own = np.random.default_rng(rng.integers(2**63))
        if strength:
            change = PERTURBATIONS[name].kinds[kind](change, strength, own, suite)
    return change


def check(requested: Any) -> None:
    """ValueError for an unknown name or kind, or a strength outside [0, 1]."""
    if not isinstance(requested, Mapping):
        raise ValueError(f"perturbation is {requested!r}, expected name -> kind or strength")
    for name, value in requested.items():
        _kind(name, value)


def _kind(name: str, value: Any) -> tuple[str, float]:
    """Kind and strength of what was requested."""
    if name not in PERTURBATIONS:
        raise ValueError(
            f"unknown perturbation {name!r}; expected one of: {', '.join(PERTURBATIONS)}"
        )
    kinds = PERTURBATIONS[name].kinds
    kind, strength = (value, 1.0) if isinstance(value, str) else (next(iter(kinds)), value)
    if kind not in kinds:
        raise ValueError(f"unknown kind {kind!r} of {name!r}; expected one of {list(kinds)}")
    if not (isinstance(strength, numbers.Real) and 0 <= float(strength) <= 1):
        raise ValueError(f"strength of {name!r} is {strength}, expected 0 to 1")
    return kind, float(strength)
