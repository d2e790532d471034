"""What perturbations of wording and goals do to a task; see `perturbations`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mistjax.envs.libero.bddl import Problem
from mistjax.envs.libero.paraphrases import VARIANTS, paraphrase
from mistjax.envs.libero.suites import Task

Rng = np.random.Generator
Rgb = tuple[float, float, float]

# What instructions call a category that they do not call by its name.
NAMES = {
    "akita_black_bowl": ("black bowl", "bowl"),
    "black_book": ("book",),
    "chefmate_8_frypan": ("frying pan",),
    "cookies": ("cookie box",),
    "cream_cheese": ("cream cheese box", "cream cheese"),
    "glazed_rim_porcelain_ramekin": ("ramekin",),
    "new_salad_dressing": ("salad dressing",),
    "porcelain_mug": ("white mug",),
    "red_coffee_mug": ("red mug",),
    "white_yellow_mug": ("yellow and white mug",),
}


@dataclasses.dataclass(frozen=True)
class Change:
    """A task after perturbation.

    Attributes:
        problem: its scene, start and goal.
        prompt: what the policy is told.
        style: the arena's floor and walls; None for its own.
        tints: object -> (colour, its share in the appearance).
        scene_changed: whether the fixed start states no longer fit.
    """

    problem: Problem
    prompt: str
    style: Mapping[str, str] | None = None
    tints: Mapping[str, tuple[Rgb, float]] = dataclasses.field(default_factory=dict)
    scene_changed: bool = False


def reword(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """One of the paraphrases."""
    return wording(int(rng.integers(VARIANTS)))(change, strength, rng, suite)


def wording(variant: int) -> Callable[[Change, float, Rng, Sequence[Task]], Change]:
    """The kind that takes one paraphrase."""

    def kind(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
        return dataclasses.replace(change, prompt=paraphrase(change.prompt, variant))

    return kind


def goal(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """What another task of the suite asks for in the same scene; failing that, `target`."""
    problem = change.problem
    others = [
        task
        for task in suite
        if task.problem.goal != problem.goal and _same_scene(task.problem, problem)
    ]
    if not others:
        return target(change, strength, rng, suite)
    other = others[int(rng.integers(len(others)))]
    known = {region.full_name for region in problem.regions}
    more = tuple(r for r in other.problem.regions if r.full_name not in known)
    new = dataclasses.replace(
        problem,
        goal=other.problem.goal,
        interest=other.problem.interest,
        language=other.problem.language,
        regions=(*problem.regions, *more),
    )
    return dataclasses.replace(change, problem=new, prompt=other.prompt)


def target(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """The same errand with another object of the scene."""
    problem, name = change.problem, asked_object(change.problem)
    mine = problem.category(name)
    named = {word for fact in problem.goal for word in fact}
    others = [
        other
        for other, kind in problem.objects
        if kind != mine and not any(word == other or word.startswith(f"{other}_") for word in named)
    ]
    other = draw(rng, others, "the scene holds no other object to ask for")
    prompt = renamed(change.prompt, mine, problem.category(other))
    new = dataclasses.replace(
        problem,
        goal=tuple(tuple(other if w == name else w for w in fact) for fact in problem.goal),
        interest=tuple(other if word == name else word for word in problem.interest),
        language=prompt,
    )
    return dataclasses.replace(change, problem=new, prompt=prompt)


def renamed(prompt: str, old: str, new: str) -> str:
    """The instruction with an object of category `new` in place of `old`.

    What "pick up the ..." says of where the object is goes too: it is not true of the new one.

    Raises:
        ValueError: the instruction does not name the old one, or not clearly.
    """
    noun = _nouns(new)[0]
    errand = re.fullmatch(r"(\w+(?: up)?) the .+?( and (?:place|put|set|lay) it .+)", prompt)
    if errand and any(f"the {word}" in errand[0] for word in _nouns(old)):
        return f"{errand[1]} the {noun}{errand[2]}"
    for word in _nouns(old):
        if prompt.count(f"the {word}") == 1:
            return prompt.replace(f"the {word}", f"the {noun}")
    raise ValueError(f"{prompt!r} does not name {_nouns(old)} once: cannot ask for another object")


def _nouns(category: str) -> tuple[str, ...]:
    return NAMES.get(category, (category.replace("_", " "),))


def asked_object(problem: Problem) -> str:
    """The object that the first fact of the goal moves; ValueError when it moves none."""
    movable = dict(problem.objects)
    names = [fact[1] for fact in problem.goal if len(fact) == 3 and fact[1] in movable]
    if not names:
        raise ValueError(f"the goal {problem.goal} moves no object that could be changed")
    return names[0]


def _same_scene(a: Problem, b: Problem) -> bool:
    return (a.kind, a.objects, a.fixtures, set(a.init)) == (
        b.kind,
        b.objects,
        b.fixtures,
        set(b.init),
    )


def draw(rng: Rng, choices: Sequence[Any], otherwise: str) -> Any:
    """One of the choices; ValueError says `otherwise` when there is none."""
    if not choices:
        raise ValueError(otherwise)
    return choices[int(rng.integers(len(choices)))]
