"""LIBERO's task files as values: `Problem.parse(text)` and back, `problem.text()`.

A BDDL file says which objects there are, where they start, what is asked, and when it is done.
LIBERO's own reader ignores what it does not know, writes everything in lower case, and calls `eval`
on the angles; this one keeps the prompt's case, takes numbers only, and refuses what it does not
know. Simulators only ever get what `text()` writes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

Tree = list[Any]
Box = tuple[float, float, float, float]
Fact = tuple[str, ...]

PROBLEMS = (
    "LIBERO_Coffee_Table_Manipulation",
    "LIBERO_Floor_Manipulation",
    "LIBERO_Kitchen_Tabletop_Manipulation",
    "LIBERO_Living_Room_Tabletop_Manipulation",
    "LIBERO_Study_Tabletop_Manipulation",
    "LIBERO_Tabletop_Manipulation",
)
DEPTH = 16  # parentheses in one another; a task needs five
PREDICATES = ("On", "In", "Open", "Close", "TurnOn", "TurnOff", "Up", "Stack")
SECTIONS = (
    "domain",
    "language",
    "regions",
    "fixtures",
    "objects",
    "obj_of_interest",
    "init",
    "goal",
)


@dataclasses.dataclass(frozen=True)
class Region:
    """A place on `target`: rectangles (x low, y low, x high, y high) in metres in the target's
    frame, or the site of this name on it. Its full name is `target_name`."""

    name: str
    target: str
    boxes: tuple[Box, ...] = ()
    yaw: tuple[float, float] | None = None

    @property
    def full_name(self) -> str:
        return f"{self.target}_{self.name}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One task.

    Attributes:
        kind: which arena, one of `PROBLEMS`.
        language: the instruction.
        regions: places that `init` and `goal` name.
        fixtures, objects: (name, category), grouped by category; fixtures cannot be moved.
        interest: what the task is about, targets last.
        init: facts at the start, such as ("On", "milk_1", "floor_bin_region").
        goal: facts that must all hold.
    """

    kind: str
    language: str
    regions: tuple[Region, ...]
    fixtures: tuple[tuple[str, str], ...]
    objects: tuple[tuple[str, str], ...]
    interest: tuple[str, ...]
    init: tuple[Fact, ...]
    goal: tuple[Fact, ...]

    def __post_init__(self) -> None:
        for kind in ("fixtures", "objects"):
            pairs = getattr(self, kind)
            categories = dict.fromkeys(category for _, category in pairs)
            order = {category: place for place, category in enumerate(categories)}
            together = sorted(pairs, key=lambda pair: order[pair[1]])
            object.__setattr__(self, kind, tuple(together))

    @classmethod
    def parse(cls, text: str) -> Problem:
        """Reads a BDDL file.

        Raises:
            ValueError: not a LIBERO task, or one with something that scenes would ignore.
        """
        head, *groups = _group(_tree(text), "BDDL text")
        if head != "define" or not groups or _group(groups[0], "problem")[0] != "problem":
            raise ValueError("not a BDDL problem: expected `(define (problem ...) ...)`.")
        kind = " ".join(_words(groups[0][1:], "problem"))
        found: dict[str, Tree] = {}
        for group in groups[1:]:
            section = _group(group, "section")[0].removeprefix(":")
            if section in found:
                raise ValueError(f"the BDDL problem has the section {section!r} twice.")
            found[section] = group[1:]
        if unknown := sorted(set(found) - set(SECTIONS)):
            raise ValueError(
                f"BDDL sections {unknown} are unknown: scenes are made of {list(SECTIONS)} only."
            )
        if missing := sorted(set(SECTIONS) - set(found)):
            raise ValueError(f"the BDDL problem has no sections {missing}.")
        goal = _group(found["goal"][0] if len(found["goal"]) == 1 else [], "goal")
        if goal[0].lower() != "and":
            raise ValueError(f"the goal is {goal[0]!r} of facts; LIBERO checks only `And`.")
        return cls(
            kind=_one_of(PROBLEMS, kind, "problem"),
            language=" ".join(_words(found["language"], "language")),
            regions=tuple(_region(group) for group in found["regions"]),
            fixtures=tuple(_typed(_words(found["fixtures"], "fixtures"))),
            objects=tuple(_typed(_words(found["objects"], "objects"))),
            interest=tuple(_words(found["obj_of_interest"], "obj_of_interest")),
            init=tuple(_fact(group) for group in found["init"]),
            goal=tuple(_fact(group) for group in goal[1:]),
        )

    def text(self) -> str:
        """The BDDL file."""
        regions = "".join(f"\n    {_region_text(region)}" for region in self.regions)
        fixtures, objects = _typed_text(self.fixtures), _typed_text(self.objects)
        interest = "".join(f"\n    {name}" for name in self.interest)
        init = "".join(f"\n    ({' '.join(fact)})" for fact in self.init)
        goal = " ".join(f"({' '.join(fact)})" for fact in self.goal)
        return (
            f"(define (problem {self.kind})\n  (:domain robosuite)\n"
            f"  (:language {self.language})\n  (:regions{regions}\n  )\n"
            f"  (:fixtures{fixtures}\n  )\n  (:objects{objects}\n  )\n"
            f"  (:obj_of_interest{interest}\n  )\n  (:init{init}\n  )\n"
            f"  (:goal\n    (And {goal})\n  )\n)\n"
        )

    def category(self, name: str) -> str:
        """What kind of thing an object or fixture is; KeyError when there is none of that name."""
        return dict(self.fixtures + self.objects)[name]

    def region(self, full_name: str) -> Region:
        """The region that facts call `full_name`; KeyError when there is none."""
        return {region.full_name: region for region in self.regions}[full_name]


def _tree(text: str) -> Tree:
    """Nested lists of words; comments run from `;` to the end of the line."""
    words = re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text))
    trees = list(_branches(iter(words), depth=0))
    if len(trees) != 1 or not isinstance(trees[0], list):
        raise ValueError("not a BDDL problem: expected one expression in parentheses.")
    return trees[0]


def _branches(words: Iterator[str], depth: int) -> Iterator[Any]:
    if depth > DEPTH:
        raise ValueError(f"BDDL text nests parentheses more than {DEPTH} deep; tasks need five.")
    for word in words:
        if word == ")":
            if not depth:
                raise ValueError("BDDL text closes one parenthesis too many.")
            return
        yield list(_branches(words, depth + 1)) if word == "(" else word
    if depth:
        raise ValueError(f"BDDL text ends with {depth} open parentheses.")


def _group(tree: Any, what: str) -> Tree:
    """A list that begins with a word."""
    if not isinstance(tree, list) or not tree or not isinstance(tree[0], str):
        raise ValueError(f"not a BDDL problem: its {what} is not a named group in parentheses.")
    return tree


def _words(tree: Tree, what: str) -> list[str]:
    if not all(isinstance(word, str) for word in tree):
        raise ValueError(f"the BDDL problem's {what} has parentheses where words are expected.")
    return tree


def _one_of(names: tuple[str, ...], word: str, what: str) -> str:
    """`word` as `names` writes it, whatever its case."""
    for name in names:
        if name.lower() == word.lower():
            return name
    raise ValueError(f"unknown {what} {word!r:.80}; expected one of {list(names)}.")


def _number(word: Any) -> float:
    try:
        value = float(word)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{word!r} is not a number; LIBERO would evaluate it as code.")
    return value


def _fact(group: Tree) -> Fact:
    if len(_words(_group(group, "fact"), "fact")) not in (2, 3):
        raise ValueError(
            f"{group!r:.200} is not a fact; expected (Predicate thing) or (Predicate thing place)."
        )
    return (_one_of(PREDICATES, group[0], "predicate"), *group[1:])


def _typed(words: list[str]) -> Iterator[tuple[str, str]]:
    """`a b - c` as (a, c), (b, c)."""
    names: list[str] = []
    rest = iter(words)
    for word in rest:
        if word != "-":
            names.append(word)
            continue
        category = next(rest, None)
        if category is None:
            raise ValueError(f"{names} have no category after '-'.")
        yield from ((name, category) for name in names)
        names = []
    if names:
        raise ValueError(f"{names} have no category; expected `name - category`.")


def _typed_text(pairs: tuple[tuple[str, str], ...]) -> str:
    """One line per category: LIBERO forgets the first line of a category that has two."""
    names: dict[str, list[str]] = {}
    for name, category in pairs:
        names.setdefault(category, []).append(name)
    return "".join(f"\n    {' '.join(group)} - {category}" for category, group in names.items())


def _region(group: Tree) -> Region:
    name, *attributes = _group(group, "region")
    found = {_group(attribute, "attribute")[0]: attribute[1:] for attribute in attributes}
    if unknown := sorted(set(found) - {":target", ":ranges", ":yaw_rotation"}):
        raise ValueError(
            f"region {name!r} has {unknown}: expected :target, :ranges, :yaw_rotation."
        )
    target = _words(found.get(":target", []), "target")
    if len(target) != 1 or len(found) < len(attributes):
        raise ValueError(f"region {name!r} has no :target, or an attribute twice.")
    boxes = _numbers(found.get(":ranges", [[]]))
    if any(len(box) != 4 or box[0] > box[2] or box[1] > box[3] for box in boxes):
        raise ValueError(
            f"region {name!r} has ranges {boxes}: expected low x, low y, high x, high y."
        )
    yaws = _numbers(found.get(":yaw_rotation", [[]]))
    if len(yaws) > 1 or any(len(yaw) != 2 for yaw in yaws):
        raise ValueError(f"region {name!r} has rotations {yaws}: expected one pair of radians.")
    return Region(name, target[0], boxes, yaws[0] if yaws else None)  # type: ignore[arg-type]


def _numbers(groups: Tree) -> tuple[tuple[float, ...], ...]:
    """`((1 2) (3 4))`, the one value of an attribute."""
    if len(groups) != 1 or not all(isinstance(row, list) for row in (*groups, *groups[0])):
        raise ValueError(f"{groups!r:.200} is not a list of groups of numbers.")
    return tuple(tuple(map(_number, row)) for row in groups[0])


def _region_text(region: Region) -> str:
    parts = [f"(:target {region.target})"]
    if region.boxes:
        boxes = " ".join(f"({' '.join(map(repr, box))})" for box in region.boxes)
        parts.append(f"(:ranges ({boxes}))")
    if region.yaw is not None:
        parts.append(f"(:yaw_rotation (({' '.join(map(repr, region.yaw))})))")
    return f"({region.name} {' '.join(parts)})"
