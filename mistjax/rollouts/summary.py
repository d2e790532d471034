"""What a run amounts to in numbers: success with its interval, alarms, latency; two runs paired by
seed.

Crashed episodes count as neither success nor failure; how many there were is always said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mistjax.rollouts.run import Run
from mistjax.stats import Rate, mcnemar


@dataclasses.dataclass(frozen=True)
class Summary:
    """One run.

    Attributes:
        success: finished episodes that succeeded.
        errors: crashed episodes; in no rate.
        causes: failure cause -> episodes.
        monitored: whether the policy reported alarms; the rates below are 0 of 0 otherwise.
        detected: failures with an alarm (the true positive rate).
        false_alarms: successes with an alarm.
        alarm_step: median env step of the first alarm in a detected failure.
        lead_steps: median env steps from there to the end of the episode.
        edited: median share of inferences in which the monitor steered.
        inference_ms: median over episodes of the median wall time of an inference (a whole batch).
    """

    success: Rate
    errors: int
    causes: Mapping[str, int]
    monitored: bool
    detected: Rate
    false_alarms: Rate
    alarm_step: float | None
    lead_steps: float | None
    edited: float
    inference_ms: float | None


def summarize(run: Run) -> Summary:
    """All numbers of one run; reads the rows only, no trace."""
    rows = run.finished
    good = [row for row in rows if row["success"]]
    bad = [row for row in rows if not row["success"]]
    caught = [row for row in bad if row["first_alarm_step"] is not None]
    monitored = bool(rows) and all(row["monitored"] for row in rows)
    causes = [row["failure_cause"] or "unnamed" for row in bad]
    return Summary(
        success=Rate(len(good), len(rows)),
        errors=len(run.rows) - len(rows),
        causes={cause: causes.count(cause) for cause in sorted(set(causes))},
        monitored=monitored,
        detected=Rate(len(caught), len(bad)) if monitored else Rate(0, 0),
        false_alarms=(
            Rate(sum(row["first_alarm_step"] is not None for row in good), len(good))
            if monitored
            else Rate(0, 0)
        ),
        alarm_step=_median([row["first_alarm_step"] for row in caught]),
        lead_steps=_median([row["steps"] - row["first_alarm_step"] for row in caught]),
        edited=_median([row["edited_inferences"] / max(row["inferences"], 1) for row in rows])
        or 0.0,
        inference_ms=_median([row["median_ms"] for row in rows if row["median_ms"] is not None]),
    )


def stand_ins(run: Run) -> str:
    """What in a run's environments is not the real thing; empty if all is."""
    said = []
    if any(row["info"].get("stand_in_assets") for row in run.rows):
        said.append("some meshes or textures; success is not comparable to published scores")
    if any(row["info"].get("physics") == "kinematic" for row in run.rows):
        said.append("kinematic physics, not MuJoCo's, which are somewhat less kind to a policy")
    if any(row["info"].get("physics") == "mjx" for row in run.rows):
        said.append("physics of MuJoCo's solver in JAX (MJX), not of MuJoCo itself")
    return "; ".join(said)


def by_task(*runs: Run) -> dict[str, Rate]:
    """Success of each task over all runs, in the order of their first seeds."""
    ended: dict[str, list[bool]] = {row["task"]: [] for run in runs for row in run.rows}
    for run in runs:
        for row in run.finished:
            ended[row["task"]].append(row["success"])
    return {task: Rate(sum(successes), len(successes)) for task, successes in ended.items()}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs on the same seeds.

    Attributes:
        n: seeds that finished in both.
        before, after: their success rates.
        repaired: failed before, succeed now.
        broken: the reverse.
        p_value: McNemar's test, exact and two-sided.
    """

    n: int
    before: Rate
    after: Rate
    repaired: int
    broken: int
    p_value: float

    @property
    def difference(self) -> float:
        """Success rate after minus before, on the shared seeds."""
        return self.after.value - self.before.value

    def __str__(self) -> str:
        return f"{100 * self.difference:+.0f} pt (p = {self.p_value:.2g}, n = {self.n})"


def compare(before: Run, after: Run) -> Comparison:
    """Pairs two runs by seed; a seed that crashed in either is left out.

    Raises:
        ValueError: no seed finished in both.
    """
    first = {row["seed"]: row["success"] for row in before.finished}
    second = {row["seed"]: row["success"] for row in after.finished}
    shared = sorted(first.keys() & second.keys())
    if not shared:
        raise ValueError("the two runs share no finished seed: run both with the same seeds.")
    a = np.array([first[seed] for seed in shared], bool)
    b = np.array([second[seed] for seed in shared], bool)
    return Comparison(
        n=len(shared),
        before=Rate(int(a.sum()), len(shared)),
        after=Rate(int(b.sum()), len(shared)),
        repaired=int((b & ~a).sum()),
        broken=int((a & ~b).sum()),
        p_value=mcnemar(a, b),
    )


COLUMNS = (
    "arm",
    "success [95%] (k/n)",
    "vs. first arm",
    "failures detected",
    "false alarms",
    "first alarm",
    "ms",
    "errors",
)


def table(runs: Mapping[str, Run]) -> list[dict[str, str]]:
    """One row per arm, ready to print; every arm is compared with the first one by seed."""
    baseline = next(iter(runs.values()))
    rows = []
    for name, run in runs.items():
        summary = summarize(run)
        paired = None if run is baseline else compare(baseline, run)
        alarm = "–"
        if summary.alarm_step is not None:
            alarm = f"step {summary.alarm_step:.0f} ({summary.lead_steps:.0f} before the end)"
        cells = (
            name,
            str(summary.success),
            "–" if paired is None else str(paired),
            str(summary.detected),
            str(summary.false_alarms),
            alarm,
            "–" if summary.inference_ms is None else f"{summary.inference_ms:.1f}",
            str(summary.errors),
        )
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def task_table(runs: Mapping[str, Run]) -> list[dict[str, str]]:
    """One row per task with the success of each arm, ready to print."""
    rates = {name: by_task(run) for name, run in runs.items()}
    tasks = dict.fromkeys(task for arm in rates.values() for task in arm)
    return [
        {"task": task} | {name: str(arm.get(task, Rate(0, 0))) for name, arm in rates.items()}
        for task in tasks
    ]


def _median(values: Sequence[float | int]) -> float | None:
    return float(np.median(values)) if values else None
