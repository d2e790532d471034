"""Kinds of policy that checkpoints hold; each registers itself.

A family of another package is found by its entry point in the group `mistjax.policies`, which names
a `Family`. It is imported only when no family known so far reads a checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mistjax.models.checkpoints import refuse_foreign
from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.protocol import Policy

GROUP = "mistjax.policies"


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of policy.

    Attributes:
        name: for messages.
        reads: whether a checkpoint is of this family, from what its `config.json` holds (None
            without one, as in openpi's published checkpoints) and the robot.
        load: a checkpoint folder and the robot -> the policy.
        several: whether a checkpoint may hold statistics of several data sets; `load` then also
            takes the `unnorm_key` of one.
        trees: whether a checkpoint may be a training state with several trees of parameters; `load`
            then also takes the `tree`.
    """

    name: str
    reads: Callable[[Mapping[str, Any] | None, RobotPreset], bool]
    load: Callable[..., Policy]
    several: bool = False
    trees: bool = False


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Adds a family; one of the same name is replaced."""
    _FAMILIES[family.name] = family


def family_of(folder: Path, config: Mapping[str, Any] | None, preset: RobotPreset) -> Family:
    """The family that reads a checkpoint.

    Raises:
        FileNotFoundError: none does, and the folder has no configuration.
        ValueError: none does (says what it is, if known), or an entry point names something that
            is not a `Family`.
    """
    for found in _FAMILIES.values():
        if found.reads(config, preset):
            return found
    for entry in entry_points(group=GROUP):
        found = entry.load()
        if not isinstance(found, Family):
            raise ValueError(f"{entry} in the group {GROUP!r} is not a `mistjax.policies.Family`.")
        register(found)
        if found.reads(config, preset):
            return found
    refuse_foreign(folder)
    known = ", ".join(_FAMILIES)
    if config is None:
        raise FileNotFoundError(
            f"{folder} has no config.json to say what it holds, and preset {preset.name!r} does "
            f"not say it either. Known are {known}."
        )
    raise ValueError(
        f"{folder} (model_type {config.get('model_type')!r}) holds none of {known}: a package that "
        f"reads it names its `Family` in the entry point group {GROUP!r}."
    )
