"""Policies by their source: a checkpoint wherever it is published, or a function."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from mistjax.models import checkpoints
from mistjax.models.sources import fetch
from mistjax.policies.families import family_of
from mistjax.policies.presets import PRESETS, RobotPreset, preset_of
from mistjax.policies.protocol import Policy

_FUNCTION = re.compile(r"(?P<module>[^\W\d][\w.]*):(?P<name>[^\W\d]\w*)")


def load_policy(
    source: str | Path,
    preset: str | None = None,
    *,
    unnorm_key: str | None = None,
    tree: str | None = None,
) -> Policy:
    """Loads a policy.

    Args:
        source: a checkpoint folder, `gs://BUCKET/PATH` or `hf://OWNER/REPOSITORY@COMMIT` (see
            `fetch`); or `MODULE:FUNCTION`, a function without arguments that makes a policy.
        preset: name of the robot; by default see `preset_of`. A function chooses its own.
        unnorm_key: which data set's statistics apply, where a checkpoint has those of several.
        tree: which parameters of a training state, `ema_params` or `params`.

    Raises:
        FileNotFoundError, ConnectionError: see `fetch` and `read_policy`.
        ImportError: no such module, or an extra that is not installed.
        ValueError: no preset of that name, no family that reads the checkpoint, weights that do not
            fit, or a function that does not make a policy.
    """
    found = _FUNCTION.fullmatch(str(source))
    if found and not Path(source).exists():
        if (preset, unnorm_key, tree) != (None,) * 3:
            raise ValueError(
                f"{source} chooses its own robot and weights: leave preset {preset!r}, unnorm_key "
                f"{unnorm_key!r} and tree {tree!r} out."
            )
        return _make(found["module"], found["name"])
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"no robot preset is called {preset!r}; choose one of {sorted(PRESETS)}.")
    folder = fetch(source)
    robot = PRESETS[preset or preset_of(source, folder)]
    return read_policy(folder, robot, unnorm_key, tree)


def read_policy(
    folder: str | Path,
    preset: RobotPreset,
    unnorm_key: str | None = None,
    tree: str | None = None,
) -> Policy:
    """Loads a checkpoint of any family.

    Args:
        folder: the checkpoint.
        preset: the robot.
        unnorm_key, tree: see `load_policy`.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: no family reads it, the weights do not fit the configuration, or an
            `unnorm_key` or `tree` for a family that has none.
        ImportError: its family needs an extra that is not installed; names it.
    """
    folder = Path(folder)
    config = checkpoints.load_config(folder) if checkpoints.has_config(folder) else None
    family = family_of(folder, config, preset)
    if unnorm_key is not None and not family.several:
        raise ValueError(
            f"{folder} is a {family.name}: the statistics that apply are those of the preset's "
            f"asset, so leave unnorm_key {unnorm_key!r} out."
        )
    if tree is not None and not family.trees:
        raise ValueError(
            f"{folder} is a {family.name}, which has one tree of parameters: leave tree {tree!r} "
            "out."
        )
    chosen = {"unnorm_key": unnorm_key} if family.several else {}
    if family.trees:
        chosen["tree"] = tree
    return family.load(folder, preset, **chosen)


def _make(module: str, name: str) -> Policy:
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise ValueError(f"module {module} has no function {name!r}.")
    policy = function()
    if not isinstance(policy, Policy):
        raise ValueError(
            f"{module}:{name} made a {type(policy).__name__}, which is not a policy: see "
            "`mistjax.policies.Policy` for what one has."
        )
    return policy
