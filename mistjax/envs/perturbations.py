"""Perturbations of a board episode, each with a strength from 0 (identity) to 1."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from mistjax.envs.episode import Episode


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A way to change an episode. `change(episode, strength, rng)` must be the identity at strength 0."""

    name: str
    kind: str
    change: Callable[[Episode, float, np.random.Generator], Episode]


PERTURBATIONS: dict[str, Perturbation] = {}


def perturb(episode: Episode, strengths: Mapping[str, float], rng: np.random.Generator) -> Episode:
    """Apply the named perturbations in their given order.

    Raises:
        ValueError: an unknown name, or a strength outside [0, 1].
    """
    for name, strength in strengths.items():
        if name not in PERTURBATIONS:
            raise ValueError(
                f"unknown perturbation {name!r}, expected one of {sorted(PERTURBATIONS)}"
            )
        if not 0 <= strength <= 1:
            raise ValueError(f"strength of {name} is {strength}, expected 0 to 1")
        if strength > 0:
            episode = PERTURBATIONS[name].change(episode, float(strength), rng)
    return episode
