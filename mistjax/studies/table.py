"""What a study found, as rows: success with intervals, and paired tests with Holm's correction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mistjax.rollouts.run import Run
from mistjax.stats import Rate, bootstrap, holm, mcnemar

Outcomes = Mapping[int, Mapping[str, Any]]
"""Seed -> row of the episode."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm under one condition.

    Attributes:
        condition, arm: which.
        n: episodes that finished.
        successes: of them.
        interval: 95%, Wilson's.
        p_against_bare: McNemar's exact test on the same seeds, with Holm's correction over the
            arms of the condition; None for bare itself.
        p_against_always: the same against the best single remedy, always on; None without it.
        repaired, broken: episodes in which this arm succeeded and bare failed, and the reverse.
        alarms_per_clean_episode: share of the episodes without a fault in which an input was named;
            None where nothing watches, or every episode has a fault.
        overhead: median time of an inference over that of bare, on a machine that may have been
            busy.
        crashed: episodes that are in no rate.
    """

    condition: str
    arm: str
    n: int
    successes: int
    interval: tuple[float, float]
    p_against_bare: float | None
    p_against_always: float | None
    repaired: int
    broken: int
    alarms_per_clean_episode: float | None
    overhead: float | None
    crashed: int

    @property
    def rate(self) -> Rate:
        return Rate(self.successes, self.n)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def outcomes(run: Run, seeds: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    """The finished episodes of a run that have one of the seeds."""
    asked = set(seeds)
    return {row["seed"]: row for row in run.finished if row["seed"] in asked}


def paired(a: Outcomes, b: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Successes of both on the seeds that finished in both."""
    shared = sorted(a.keys() & b.keys())
    return tuple(np.array([bool(x[seed]["success"]) for seed in shared], bool) for x in (a, b))  # type: ignore[return-value]


def rows(
    condition: str, found: Mapping[str, Outcomes], crashed: Mapping[str, int], always: str | None
) -> list[Row]:
    """One row per arm.

    Args:
        condition: its name.
        found: arm -> its episodes; bare first.
        crashed: arm -> episodes in no rate.
        always: the arm with a single remedy always on; None if there is none yet.
    """
    against = {
        other: holm(
            {arm: mcnemar(*paired(found[other], found[arm])) for arm in found if arm != other}
        )
        for other in ("bare", always)
        if other is not None and other in found
    }
    usual = _milliseconds(found["bare"])
    table = []
    for arm, episodes in found.items():
        before, after = paired(found["bare"], episodes)
        rate = Rate(sum(bool(row["success"]) for row in episodes.values()), len(episodes))
        took = _milliseconds(episodes)
        table.append(
            Row(
                condition=condition,
                arm=arm,
                n=rate.n,
                successes=rate.k,
                interval=(rate.interval.low, rate.interval.high),
                p_against_bare=against["bare"].get(arm),
                p_against_always=against.get(always, {}).get(arm),  # type: ignore[arg-type]
                repaired=int((after & ~before).sum()),
                broken=int((before & ~after).sum()),
                alarms_per_clean_episode=clean_alarms(episodes),
                overhead=took / usual if took and usual else None,
                crashed=crashed[arm],
            )
        )
    return table


def clean_alarms(episodes: Outcomes) -> float | None:
    """`Row.alarms_per_clean_episode`."""
    clean = [row for row in episodes.values() if row["fault"] is None]
    watched = any(row["named_step"] is not None for row in episodes.values())
    if not clean or not watched:
        return None
    return sum(row["named_step"] is not None for row in clean) / len(clean)


def _milliseconds(episodes: Outcomes) -> float | None:
    known = [row["median_ms"] for row in episodes.values() if row["median_ms"] is not None]
    return float(np.median(known)) if known else None


@dataclasses.dataclass(frozen=True)
class Target:
    """A difference that was aimed at.

    Attributes:
        condition, arm, against: what is compared.
        points: least difference of the success rates, in percentage points.
        p: largest corrected p-value; 1 for no condition on it.
    """

    condition: str
    arm: str
    against: str
    points: float
    p: float = 1.0


def check_targets(
    targets: Sequence[Target], found: Mapping[str, Mapping[str, Outcomes]]
) -> list[dict[str, Any]]:
    """Each target with what was measured; the p-values of all are one family.

    Args:
        targets: those whose arms have been played are checked.
        found: condition -> arm -> episodes.
    """
    there = [t for t in targets if {t.arm, t.against} <= set(found.get(t.condition, ()))]
    pairs = [paired(found[t.condition][t.against], found[t.condition][t.arm]) for t in there]
    corrected = holm({str(i): mcnemar(*pair) for i, pair in enumerate(pairs)})
    checked = []
    for i, (target, (before, after)) in enumerate(zip(there, pairs, strict=True)):
        gain = 100.0 * (after.astype(float) - before)
        interval = bootstrap(lambda index, gain=gain: float(gain[index].mean()), len(gain))
        difference, p = float(gain.mean()), corrected[str(i)]
        checked.append(
            dataclasses.asdict(target)
            | {
                "n": len(gain),
                "difference": difference,
                "difference_interval": tuple(interval),
                "corrected_p": p,
                "met": difference >= target.points and p <= target.p,
            }
        )
    return checked


LINKS = ("false alarm", "detection", "naming", "timing", "remedy", "policy")


def losses(mist: Outcomes, inputs: Sequence[str], execute: int) -> dict[str, int]:
    """Failures of the loop by the link that lost them.

    An episode with an unsound input is lost by a false alarm before the onset, by detection (no
    alarm), naming (another input, or none), timing (named more than one inference after the first
    that could show it) or the remedy (right and in time). Other episodes are lost by the alarm, if
    an input was named, or else by the policy.

    Args:
        mist: episodes of the loop.
        inputs: names of the inputs that have a remedy.
        execute: steps between inferences.
    """
    counts: dict[str, int] = dict.fromkeys(LINKS, 0)
    for row in mist.values():
        if not row["success"]:
            counts[_link(row, inputs, execute)] += 1
    return counts


def first_look(row: Mapping[str, Any], execute: int) -> int:
    """Step of the first inference that can show an episode's fault."""
    return -(-row["fault_onset"] // execute) * execute


def _link(row: Mapping[str, Any], inputs: Sequence[str], execute: int) -> str:
    named, at = row["named_input"], row["named_step"]
    if row["fault_input"] not in inputs:
        if named not in inputs:
            return "policy"
        return "false alarm" if row["fault"] is None else "naming"
    first = first_look(row, execute)
    if row["steps"] <= first:
        return "policy"
    if at is None:
        return "detection"
    if at < first:
        return "false alarm"
    if named != row["fault_input"]:
        return "naming"
    return "timing" if at > first + execute else "remedy"
