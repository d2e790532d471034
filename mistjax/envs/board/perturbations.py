"""Perturbations of a board episode, each with a strength from 0 (identity) to 1.

A perturbation changes what the policy sees, where things start, or what it is told; never the task
that counts as success. Strength scales the size of the change; its direction (darker or brighter,
which way the camera turns) is drawn.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mistjax.envs.board import scene as s
from mistjax.envs.board.episode import Episode, Layout
from mistjax.envs.board.instructions import COLOURS, MASK_WORD

Rng = np.random.Generator
Change = Callable[[Episode, float, Rng], Episode]


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A named change of kind "visual", "layout" or "language"; `change(episode, 0.0, rng) ==
    episode`."""

    name: str
    kind: str
    change: Change


PERTURBATIONS: dict[str, Perturbation] = {}


def check(strengths: Any) -> None:
    """Raise ValueError for an unknown name, or a strength outside [0, 1]."""
    if not isinstance(strengths, Mapping):
        raise ValueError(f"perturbation is {strengths!r}, expected name -> strength")
    for name, strength in strengths.items():
        if name not in PERTURBATIONS:
            known = ", ".join(PERTURBATIONS)
            raise ValueError(f"unknown perturbation {name!r}; expected one of: {known}")
        if not (isinstance(strength, numbers.Real) and 0 <= float(strength) <= 1):
            raise ValueError(f"strength of {name!r} is {strength}, expected 0 to 1")


def perturb(episode: Episode, strengths: Mapping[str, float], rng: Rng) -> Episode:
    """Apply the named perturbations in their given order; ValueError: see `check`."""
    check(strengths)
    for name, strength in strengths.items():
        episode = PERTURBATIONS[name].change(episode, float(strength), rng)
    return episode


def _register(kind: str) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        name = change.__name__.lstrip("_")
        PERTURBATIONS[name] = Perturbation(name, kind, change)
        return change

    return add


def _see(episode: Episode, **changes) -> Episode:
    return dataclasses.replace(episode, scene=dataclasses.replace(episode.scene, **changes))


def _rgb(values) -> s.Rgb:
    r, g, b = (float(v) for v in values)
    return r, g, b


def _between(a: float, b: float, strength: float) -> float:
    return a + (b - a) * strength


def _widen(interval, limits, strength: float):
    """Each end of `interval` moved towards the same end of `limits`."""
    return tuple(_between(a, b, strength) for a, b in zip(interval, limits, strict=True))


@_register("visual")
def _table_colour(episode: Episode, strength: float, rng: Rng) -> Episode:
    """The table towards a random colour."""
    colour, old = rng.uniform(0.1, 0.8, 3), np.array(episode.scene.table_rgb)
    return _see(episode, table_rgb=_rgb(old + (colour - old) * strength))


@_register("visual")
def _table_texture(episode: Episode, strength: float, rng: Rng) -> Episode:
    """A checker on the table, with tiles of 2 to 8 cm."""
    tile = _between(episode.scene.table_tile, float(rng.uniform(0.02, 0.08)), float(strength > 0))
    contrast = max(episode.scene.table_contrast, 0.7 * strength)
    return _see(episode, table_contrast=contrast, table_tile=tile)


@_register("visual")
def _board_reflectivity(episode: Episode, strength: float, rng: Rng) -> Episode:
    """A highlight on the board."""
    return _see(
        episode, board_reflectivity=_between(episode.scene.board_reflectivity, 0.8, strength)
    )


@_register("visual")
def _stone_reflectivity(episode: Episode, strength: float, rng: Rng) -> Episode:
    """Stones from satin to mirror bright: a black one then shows a white spot."""
    return _see(
        episode, stone_reflectivity=_between(episode.scene.stone_reflectivity, 2.0, strength)
    )


@_register("visual")
def _brightness(episode: Episode, strength: float, rng: Rng) -> Episode:
    """The whole picture darker or brighter, by up to a factor of 1.7."""
    factor = math.exp(rng.choice([-1, 1]) * 0.53 * strength)
    return _see(episode, gain=_rgb(np.multiply(episode.scene.gain, factor)))


@_register("visual")
def _colour_balance(episode: Episode, strength: float, rng: Rng) -> Episode:
    """Channel gains of up to 1.5 and down to 1 / 1.5 whose product stays 1."""
    tilt = rng.permutation([-1.0, 0.0, 1.0])
    return _see(episode, gain=_rgb(episode.scene.gain * np.exp(0.4 * strength * tilt)))


@_register("visual")
def _camera_fov(episode: Episode, strength: float, rng: Rng) -> Episode:
    """The front camera zoomed in or out by up to 25%."""
    front = episode.scene.front
    fovy = front.fovy * math.exp(rng.choice([-1, 1]) * 0.22 * strength)
    return _see(episode, front=dataclasses.replace(front, fovy=fovy))


@_register("visual")
def _camera_angle(episode: Episode, strength: float, rng: Rng) -> Episode:
    """The front camera turned to look at a point up to 5 cm away, in a random direction."""
    turn, (x, y, z) = rng.uniform(0, 2 * math.pi), episode.scene.front.target
    target = (x + 0.05 * strength * math.cos(turn), y + 0.05 * strength * math.sin(turn), z)
    return _see(episode, front=dataclasses.replace(episode.scene.front, target=target))


def _place(episode: Episode, **changes) -> Episode:
    return dataclasses.replace(episode, layout=dataclasses.replace(episode.layout, **changes))


@_register("layout")
def _stone_count(episode: Episode, strength: float, rng: Rng) -> Episode:
    """More distractors, up to 8."""
    low, high = _widen(episode.layout.distractors, (s.MAX_STONES - 2,) * 2, strength)
    return _place(episode, distractors=(round(low), round(high)))


@_register("layout")
def _stone_layout(episode: Episode, strength: float, rng: Rng) -> Episode:
    """Distractors off their cells by up to 6 mm per axis and crowding around the target."""
    layout = episode.layout
    jitter = _between(layout.jitter, 0.006, strength)
    return _place(episode, jitter=jitter, crowding=_between(layout.crowding, 1.0, strength))


@_register("layout")
def _initial_positions(episode: Episode, strength: float, rng: Rng) -> Episode:
    """Stones and gripper start from wider ranges, up to the edge of the workspace."""
    layout: Layout = episode.layout
    return _place(
        episode,
        supply_x=_widen(layout.supply_x, (0.125, 0.195), strength),
        supply_y=_widen(layout.supply_y, (-0.145, 0.145), strength),
        gripper_low=_widen(layout.gripper_low, (-0.12, -0.145, 0.045), strength),
        gripper_high=_widen(layout.gripper_high, (0.19, 0.145, 0.125), strength),
    )


def content_words(prompt: str) -> dict[str, int]:
    """Where the words stand that say which stone and which cell."""
    words = prompt.split()
    return {
        "colour": words.index("stone") - 1,
        "row": words.index("row") + 1,
        "column": words.index("column") + 1,
    }


def _rewrite(
    episode: Episode, strength: float, rng: Rng, new: Callable[[str, str], str]
) -> Episode:
    """Replace one to three of the content words, more with strength."""
    words, places = episode.prompt.split(), content_words(episode.prompt)
    for name in rng.permutation(list(places))[: math.ceil(len(places) * strength)]:
        words[places[name]] = new(str(name), words[places[name]])
    return dataclasses.replace(episode, prompt=" ".join(words))


@_register("language")
def _swapped_words(episode: Episode, strength: float, rng: Rng) -> Episode:
    """Colour, row or column replaced by another: the policy is told something else than what
    counts."""

    def other(name: str, word: str) -> str:
        choices = COLOURS if name == "colour" else "12345"
        return str(rng.choice([c for c in choices if c != word]))

    return _rewrite(episode, strength, rng, other)


@_register("language")
def _masked_words(episode: Episode, strength: float, rng: Rng) -> Episode:
    """Colour, row or column replaced by `MASK_WORD`, which a prompt format may clean away."""
    return _rewrite(episode, strength, rng, lambda name, word: MASK_WORD)
