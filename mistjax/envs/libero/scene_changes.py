"""What perturbations of objects, positions and surroundings do to a task; see `perturbations`."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Sequence

import numpy as np

from mistjax.envs.libero.bddl import Box, Fact, Problem
from mistjax.envs.libero.changes import Change, Rng, asked_object, draw
from mistjax.envs.libero.suites import Task

FAMILIES = (
    ("alphabet_soup", "tomato_sauce"),
    ("cream_cheese", "butter", "chocolate_pudding"),
    ("ketchup", "bbq_sauce", "salad_dressing"),
    ("milk", "orange_juice"),
    ("porcelain_mug", "red_coffee_mug", "white_yellow_mug"),
    ("akita_black_bowl", "glazed_rim_porcelain_ramekin"),
)
# Workspace in facts -> the arena and the fixture that make it.
WORKSPACES = {
    "floor": ("LIBERO_Floor_Manipulation", "floor"),
    "main_table": ("LIBERO_Tabletop_Manipulation", "table"),
    "kitchen_table": ("LIBERO_Kitchen_Tabletop_Manipulation", "kitchen_table"),
    "living_room_table": ("LIBERO_Living_Room_Tabletop_Manipulation", "living_room_table"),
    "study_table": ("LIBERO_Study_Tabletop_Manipulation", "study_table"),
}
# Where things are moved to: both have the same height and leave room under the arm.
TABLES = ("main_table", "kitchen_table")
FLOORS = ("light-gray", "gray-ceramic", "wood-plank")
WALLS = ("light-gray-plaster", "yellow-linen")
FARTHEST, APART = 0.12, 0.11


def tint(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """The object that is asked for, tinted towards a random bright colour."""
    colour = colorsys.hsv_to_rgb(float(rng.random()), 0.9, 0.9)
    return dataclasses.replace(
        change, tints={**change.tints, asked_object(change.problem): (colour, strength)}
    )


def category(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """An object of the same family that is not in the scene yet, in place of the one asked for."""
    problem, name = change.problem, asked_object(change.problem)
    mine = problem.category(name)
    family = next((family for family in FAMILIES if mine in family), ())
    present = {kind for _, kind in problem.objects}
    others = [kind for kind in family if kind not in present]
    other = draw(rng, others, f"{mine!r} has no relative that is not in the scene")
    objects = tuple((n, other if n == name else kind) for n, kind in problem.objects)
    return _scene(change, objects=objects)


def shift(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """The start of the object that is asked for, moved by `strength` times 12 cm, away from
    others.
    """
    problem, name = change.problem, asked_object(change.problem)
    start = _start(problem, name)
    old = problem.region(start[2])
    centre = _centre(old.boxes[0])
    others = [
        _centre(problem.region(fact[2]).boxes[0])
        for fact in problem.init
        if fact != start and len(fact) == 3 and _is_area(problem, fact[2])
    ]
    turns = rng.permutation(64) * (2 * np.pi / 64)
    spots = centre + strength * FARTHEST * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    gaps = np.linalg.norm(spots[:, None] - np.array(others)[None], axis=2).min(axis=1)
    free = np.flatnonzero(gaps > APART)
    spot = spots[free[0] if len(free) else gaps.argmax()]
    new = dataclasses.replace(old, boxes=(_moved(old.boxes[0], spot - centre),))
    if sum(fact[-1] == old.full_name for fact in problem.init + problem.goal) > 1:
        new = dataclasses.replace(new, name=f"{old.name}_of_{name}")
        init = tuple((*f[:2], new.full_name) if f == start else f for f in problem.init)
        return _scene(change, regions=(*problem.regions, new), init=init)
    return _scene(change, regions=tuple(new if r == old else r for r in problem.regions))


def swap(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """The object that is asked for and another one swap their starts."""
    problem, name = change.problem, asked_object(change.problem)
    start = _start(problem, name)
    taken = {word for fact in problem.goal for word in fact}
    others = [
        fact
        for fact in problem.init
        if len(fact) == 3
        and fact[1] in dict(problem.objects)
        and fact[1] not in taken
        and not any(word.startswith(f"{fact[1]}_") for word in taken)
        and _is_area(problem, fact[2])
    ]
    other = draw(rng, others, "no other object stands on the workspace")
    places = {name: other[2], other[1]: start[2]}
    init = tuple((*f[:2], places[f[1]]) if f in (start, other) else f for f in problem.init)
    return _scene(change, init=init)


def style(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """Other floor and walls."""
    old = change.style or {}
    floors = [floor for floor in FLOORS if floor != old.get("floor_style", own_floor(change))]
    walls = [wall for wall in WALLS if wall != old.get("wall_style", own_wall(change))]
    new = {"floor_style": str(rng.choice(floors)), "wall_style": str(rng.choice(walls))}
    return dataclasses.replace(change, style=new)


def own_floor(change: Change) -> str:
    """The floor that a problem's arena has by itself."""
    kind = change.problem.kind
    return {"Kitchen": "gray-ceramic", "Living": "wood-plank"}.get(kind.split("_")[1], "light-gray")


def own_wall(change: Change) -> str:
    """The walls that a problem's arena has by itself."""
    return "yellow-linen" if "Kitchen" in change.problem.kind else "light-gray-plaster"


def workspace(change: Change, strength: float, rng: Rng, suite: Sequence[Task]) -> Change:
    """The same things at the same places on another table."""
    problem = change.problem
    old = next(place for place, (kind, _) in WORKSPACES.items() if kind == problem.kind)
    new = str(rng.choice([table for table in TABLES if table != old]))
    kind, fixture = WORKSPACES[new]

    def move(word: str) -> str:
        return new + word.removeprefix(old) if word == old or word.startswith(f"{old}_") else word

    def facts(old_facts: Sequence[Fact]) -> tuple[Fact, ...]:
        return tuple((fact[0], *map(move, fact[1:])) for fact in old_facts)

    fixtures = tuple((new, fixture) if name == old else (name, c) for name, c in problem.fixtures)
    return _scene(
        change,
        kind=kind,
        fixtures=fixtures,
        regions=tuple(dataclasses.replace(r, target=move(r.target)) for r in problem.regions),
        interest=tuple(map(move, problem.interest)),
        init=facts(problem.init),
        goal=facts(problem.goal),
    )


def _scene(change: Change, **fields) -> Change:
    problem = dataclasses.replace(change.problem, **fields)
    return dataclasses.replace(change, problem=problem, scene_changed=True)


def _start(problem: Problem, name: str) -> Fact:
    """The fact that says where an object starts on the workspace."""
    for fact in problem.init:
        if fact[1] == name and len(fact) == 3 and _is_area(problem, fact[2]):
            return fact
    raise ValueError(f"{name} does not start on an area of the workspace: it cannot be moved")


def _is_area(problem: Problem, name: str) -> bool:
    return any(region.full_name == name and region.boxes for region in problem.regions)


def _centre(box: Box):
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def _moved(box: Box, by) -> Box:
    x, y = map(float, by)
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y
