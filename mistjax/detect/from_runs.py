"""Recorded runs as what a detector reads, and which episodes they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mistjax.detect.data import Episodes
from mistjax.detect.inputs import Input
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace, to_json

Group = Callable[[Trace], str]


def by_task(trace: Trace) -> str:
    """Each task is a group of its own."""
    return trace.task


def episodes_from_runs(runs: Sequence[Run], reads: Input, *, group: Group = by_task) -> Episodes:
    """The finished episodes of several runs of one policy.

    Args:
        runs: with everything that is read.
        reads: what a detector reads.
        group: what counts as one task. Metrics by earliest stop compare episodes of one task up to
            its shortest episode, so put tasks of similar length together.

    Raises:
        ValueError: no runs, runs of different policies, an episode twice, or something that was not
            recorded.
    """
    return read_runs(runs, reads, group=group).episodes


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a detector reads of recorded runs, and which episodes they were.

    Attributes:
        episodes: the finished ones.
        identities: of each, see `identity`.
        strata: of each, see `stratum_of`.
        names: of each, for messages: its run and its seed.
    """

    episodes: Episodes
    identities: tuple[str, ...]
    strata: tuple[str, ...]
    names: tuple[str, ...]


def read_runs(
    runs: Sequence[Run], reads: Input, *, group: Group = by_task, strata: str | None = None
) -> Recorded:
    """See `episodes_from_runs` and `stratum_of`."""
    policy_of(runs)
    pairs = [(run, trace) for run in runs for trace in run.traces()]
    if not pairs:
        raise ValueError(f"no episode of {[str(run.path) for run in runs]} has ended: record more.")
    groups = [group(trace) for _, trace in pairs]
    tasks = sorted(set(groups))
    identities = [identity(trace) for _, trace in pairs]
    names = [f"seed {trace.seed} of {run.path or 'a run in memory'}" for run, trace in pairs]
    if twice := [i for i, found in enumerate(identities) if found in identities[:i]]:
        first, second = identities.index(identities[twice[0]]), twice[0]
        raise ValueError(
            f"{len(twice)} episodes are given twice, such as {names[first]} and {names[second]}: "
            "give each episode once."
        )
    episodes = Episodes.from_sequences(
        [reads.recorded(trace) for _, trace in pairs],
        [trace.success for _, trace in pairs],
        [tasks.index(name) for name in groups],
        [trace.seed for _, trace in pairs],
    )
    labels = [stratum_of(run, trace, strata) for run, trace in pairs]
    return Recorded(episodes, tuple(identities), tuple(labels), tuple(names))


def identity(trace: Trace) -> str:
    """Which episode it is, whenever and wherever it was recorded: policy, environment, seed, task
    and perturbation. An imported episode's seed is a number of its folder, so there what was done
    tells episodes apart.
    """
    about = [trace.policy_fingerprint, trace.env_id, trace.seed, trace.task, trace.prompt]
    digest = hashlib.sha256(to_json([*about, trace.perturbation]).encode())
    if trace.env_id.startswith("safe/"):
        digest.update(np.ascontiguousarray(trace.actions).tobytes())
    return digest.hexdigest()[:16]


def policy_of(runs: Sequence[Run]) -> str:
    """The fingerprint of the one policy that the runs are of; ValueError for none or several."""
    found = (run.config.get("policy_fingerprint") for run in runs)
    policies = {fingerprint for fingerprint in found if isinstance(fingerprint, str)}
    if len(policies) != 1:
        raise ValueError(
            f"the runs are of {len(policies)} policies: give runs of one, a detector reads its "
            "activations."
        )
    return policies.pop()


def executed_of(runs: Sequence[Run]) -> int | None:
    """How many actions of each chunk were executed; None if the runs do not say or differ."""
    found = {run.config.get("execute_steps") for run in runs}
    return found.pop() if len(found) == 1 else None


def stratum_of(run: Run, trace: Trace, key: str | None) -> str:
    """What an episode's threshold is chosen by: a setting of its run, such as LIBERO's `suite`, a
    key of a JSON task, or "task" for the task itself; "" without a key.

    Raises:
        ValueError: the episode has none of that.
    """
    if key is None:
        return ""
    return str(run.config[key]) if key in run.config else task_group(trace, key)


def task_group(trace: Trace, key: str | None) -> str:
    """The value of `key` in a JSON task; the whole task for "task" or None.

    Raises:
        ValueError: the task is not a JSON object with that key.
    """
    if key in (None, "task"):
        return trace.task
    try:
        return str(json.loads(trace.task)[key])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"the task {trace.task!r} of seed {trace.seed} has no {key!r}: leave the key out, or "
            "name one of a JSON task."
        ) from None


def report_metrics(metrics: Mapping[str, float]) -> str:
    """Metrics in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON: None for one that these episodes do not define (NaN)."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
