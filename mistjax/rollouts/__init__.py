"""Run episodes, record them, read them back, sum them up."""

from mistjax.rollouts.run import Features, Run, load_run
from mistjax.rollouts.runner import run_episodes
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.summary import compare, summarize, table
from mistjax.rollouts.trace import Trace

__all__ = [
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
