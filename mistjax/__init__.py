"""mistjax: a policy goes in, a safer policy comes out.

What is below is imported when it is first used, so that importing mistjax costs nothing. See
docs/api.md.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mistjax.attribute.explain import explain
    from mistjax.attribute.registry import attribute
    from mistjax.detect import calibrate, fit_detector
    from mistjax.hooks import Add, Affine, Patch, ProjectOut, Scale, SetNeurons, Tap
    from mistjax.policies import Policy, load_policy
    from mistjax.policies.memory import memory
    from mistjax.recover.artifact import load_mist
    from mistjax.recover.mist import MistPolicy
    from mistjax.rollouts import Run, load_run
    from mistjax.rollouts.collect import collect

__version__ = "0.1.0"

__all__ = [
    "Add",
    "Affine",
    "MistPolicy",
    "Patch",
    "Policy",
    "ProjectOut",
    "Run",
    "Scale",
    "SetNeurons",
    "Tap",
    "__version__",
    "attribute",
    "calibrate",
    "collect",
    "explain",
    "fit_detector",
    "load_mist",
    "load_policy",
    "load_run",
    "memory",
]

_HOMES = {
    "attribute.explain": ("explain",),
    "attribute.registry": ("attribute",),
    "detect": ("calibrate", "fit_detector"),
    "hooks": ("Add", "Affine", "Patch", "ProjectOut", "Scale", "SetNeurons", "Tap"),
    "policies": ("Policy", "load_policy"),
    "policies.memory": ("memory",),
    "recover.artifact": ("load_mist",),
    "recover.mist": ("MistPolicy",),
    "rollouts": ("Run", "load_run"),
    "rollouts.collect": ("collect",),
}


_RENAMED = {"price": "memory"}
"""Names of the release before this one."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        now = _RENAMED[name]
        message = f"mistjax.{name} is now called mistjax.{now}."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        name = now
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"mistjax.{home}"), name)
    raise AttributeError(
        f"module 'mistjax' has no attribute {name!r}; it has {', '.join(__all__)}."
    )


def __dir__() -> list[str]:
    return sorted(__all__)
