"""What can go wrong in a study's episodes, by name: nothing, one fault in each, or a mixture."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistjax.envs.faults.battery import FAULTS, Mixture, read_mixture
from mistjax.envs.faults.splits import strengths

MIXTURES = {
    "mixture": "board",
    "unseen_strengths": "board_unseen_strengths",
    "unseen_kinds": "board_unseen_kinds",
}
"""Condition -> shipped mixture."""

CHOSEN = (
    "front_frozen",
    "front_colour_cast",
    "front_salt_and_pepper",
    "wrist_frozen",
    "wrist_colour_cast",
    "wrist_salt_and_pepper",
    "state_offset",
    "state_frozen",
    "instruction_swapped_word",
    "push",
)
"""Faults with a condition of their own: for each camera one that freezes and one that changes
colour or detail, two of the state, a wrong word; and a push, which is none of the inputs.
"""


@dataclasses.dataclass(frozen=True)
class Condition:
    """Where episodes are played.

    Attributes:
        name: in tables, and of the folder.
        faults: which fault happens in which episode.
        plan: the fields of an `EpisodePlan` that request it.
    """

    name: str
    faults: Mixture
    plan: Mapping[str, Any]


def condition(name: str, sensor_noise: bool | None = None) -> Condition:
    """`nominal`, a mixture of `MIXTURES`, a fault by name at the greatest of the strengths that may
    be looked at or at one that is given (`state_scaled_0.5`), or a JSON file with a mixture.

    Args:
        name: see above.
        sensor_noise: whether there is ordinary sensor noise; None is as the file says, and with
            noise elsewhere.

    Raises:
        ValueError: none of these, or a strength that is not from 0 to 1.
    """
    found = _condition(name)
    if sensor_noise is None:
        return found
    noise = {"sensor_noise": sensor_noise}
    faults = dataclasses.replace(found.faults, **noise)
    return Condition(found.name, faults, {**found.plan, **noise})


def _condition(name: str) -> Condition:
    if name == "nominal":
        return Condition(name, Mixture(), {"sensor_noise": True})
    if fault := _fault(name):
        return Condition(name, Mixture.single(*fault), {"fault": fault, "sensor_noise": True})
    source = MIXTURES.get(name, name)
    try:
        return Condition(Path(name).stem, read_mixture(source), {"faults": source})
    except FileNotFoundError:
        raise ValueError(
            f"no condition is called {name!r}: expected nominal, {', '.join(MIXTURES)}, a fault "
            f"such as {CHOSEN[0]} or, with a strength, state_scaled_0.5, or a JSON file with a "
            "mixture."
        ) from None


def _fault(name: str) -> tuple[str, float] | None:
    """A fault with its greatest strength or the one that the name ends in; None of other names."""
    if name in FAULTS:
        return name, max(strengths(name) or (1.0,))
    fault, _, given = name.rpartition("_")
    with contextlib.suppress(ValueError):
        return (fault, float(given)) if fault in FAULTS else None
    return None
