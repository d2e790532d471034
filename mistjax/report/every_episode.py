"""All episodes of several runs as a list to filter, and links from a number to its episodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mistjax.report.blocks import Episodes, Pick, Text
from mistjax.report.html import Section

Rows = Iterable[Mapping[str, Any]]
MOST = 5000
"""Episodes on a page."""


def every_episode(
    runs: Mapping[tuple[str, str], Rows], shown: Mapping[tuple[str, str, int], str] | None = None
) -> Section:
    """The section with all episodes.

    Args:
        runs: (condition, arm) -> rows of a run; the other arms of a condition are compared with its
            first. A condition of "" is not shown.
        shown: (condition, arm, seed) -> id of its video on the page.
    """
    listed = []
    outcomes = {key: {row["seed"]: row for row in rows} for key, rows in runs.items()}
    first: dict[str, Mapping[int, Mapping[str, Any]]] = {}
    for (where, arm), rows in outcomes.items():
        against = first.setdefault(where, rows)
        for seed, row in rows.items():
            video = (shown or {}).get((where, arm, seed))
            listed.append(_listed(where, arm, row, against.get(seed), video))
    chosen = ("condition", "arm", "outcome", "cause", "change", "alarm", "named", "fault")
    left = len(listed) - MOST
    note = f" {left} further episodes are in the runs' `episodes.parquet`." if left > 0 else ""
    text = Text(
        "One line per episode and arm. Numbers in the tables above lead here, to the episodes that "
        f"they count; a seed that is a link leads to its video. Steps are env steps.{note}"
    )
    return Section("Every episode", [text, Episodes(listed[:MOST], chosen)])


def _listed(
    where: str,
    arm: str,
    row: Mapping[str, Any],
    against: Mapping[str, Any] | None,
    video: str | None,
) -> dict[str, str]:
    outcome = outcome_of(row)
    change = ""
    if (
        against is not None
        and against is not row
        and "crashed" not in (outcome, outcome_of(against))
    ):
        before = outcome_of(against)
        change = {
            ("failed", "succeeded"): "repaired",
            ("succeeded", "failed"): "broken",
        }.get((before, outcome), "same")
    steps = [row.get(name) for name in ("first_alarm_step", "named_step")]
    alarms = [step for step in steps if step is not None]
    return {
        "condition": where.replace("_", " "),
        "arm": arm,
        "seed": str(row["seed"]),
        "outcome": outcome,
        "cause": (row.get("failure_cause") or "").replace("_", " "),
        "change": change,
        "steps": "" if row.get("steps") is None else str(row["steps"]),
        "alarm": "yes" if alarms else "no",
        "alarm at step": str(min(alarms)) if alarms else "",
        "named": _named(row),
        "fault": (row.get("fault") or "none").replace("_", " "),
        "fault at step": "" if row.get("fault_onset") is None else str(row["fault_onset"]),
        "video": video or "",
    }


def outcome_of(row: Mapping[str, Any]) -> str:
    """How an episode ended: succeeded, failed or crashed."""
    if row.get("error") is not None:
        return "crashed"
    return "succeeded" if row["success"] else "failed"


def _named(row: Mapping[str, Any]) -> str:
    if row.get("named_step") is None:
        return ""
    return row.get("named_input") or "none of the inputs"


def picks(
    arms: Iterable[str], columns: Mapping[str, Pick], where: str = ""
) -> dict[tuple[int, str], Pick]:
    """Links of a table with one row per arm: (row, column) -> the episodes that the cell counts.

    Args:
        arms: in the order of the rows.
        columns: column -> what its episodes have besides the arm.
        where: the condition of the table.
    """
    place = {"condition": where.replace("_", " ")} if where else {}
    return {
        (number, column): {**place, "arm": arm, **chosen}
        for number, arm in enumerate(arms)
        for column, chosen in columns.items()
    }
