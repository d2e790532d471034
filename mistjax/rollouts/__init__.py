"""Run episodes, record them, read them back, sum them up.

The names below are imported when they are first used: a plan needs neither JAX nor Arrow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mistjax.rollouts.plan import EpisodePlan
    from mistjax.rollouts.run import Features, Run, load_run
    from mistjax.rollouts.runner import run_episodes
    from mistjax.rollouts.store import RunWriter
    from mistjax.rollouts.summary import compare, summarize, table
    from mistjax.rollouts.trace import Trace

__all__ = [
    "EpisodePlan",
    "Features",
    "Run",
    "RunWriter",
    "Trace",
    "compare",
    "load_run",
    "run_episodes",
    "summarize",
    "table",
]

_HOMES = {
    "plan": ("EpisodePlan",),
    "run": ("Features", "Run", "load_run"),
    "runner": ("run_episodes",),
    "store": ("RunWriter",),
    "summary": ("compare", "summarize", "table"),
    "trace": ("Trace",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
