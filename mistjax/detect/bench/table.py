"""The comparison as text and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from mistjax.detect.bench.rows import ALARMS, COSTS, RANKING, Row
from mistjax.files import atomic

TITLES = {
    "roc_auc": "ROC-AUC",
    "auprc": "AUPRC",
    "roc_auc_full": "ROC-AUC, full",
    "auprc_full": "AUPRC, full",
    "roc_auc_task_mean": "ROC-AUC, task mean",
    "bal_acc": "balanced accuracy",
    "detected": "detected",
    "false_alarms": "false alarms",
    "detection_time": "detection time",
    "latency": "latency after onset",
}


def by_auc(rows: Sequence[Row]) -> list[Row]:
    """Scored rows by ROC-AUC by earliest stop, best first; then the others as they come."""

    def key(row: Row) -> float:
        value = row["roc_auc"]["value"] if row["status"] == "scored" else None
        return float("inf") if value is None else -value

    return sorted(rows, key=key)


def scored(rows: Sequence[Row]) -> list[Row]:
    """Those of detectors that could be fitted and judged."""
    return [row for row in rows if row["status"] == "scored"]


def ranking_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """How well scores rank failures above successes, and what they cost."""
    return [
        {"detector": _name(row)}
        | {TITLES[name]: estimate(row[name]) for name in RANKING}
        | {"fit": f"{row['fit_s']:.1f} s", "step": f"{row['step_us']:.1f} µs"}
        for row in scored(rows)
    ]


def alarm_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What the calibrated threshold does."""
    return [
        {"detector": _name(row)}
        | {TITLES[name]: estimate(row.get(name, {})) for name in _alarms(rows)}
        | {"remark": row["remark"] or "–"}
        for row in scored(rows)
    ]


def _alarms(rows: Sequence[Row]) -> tuple[str, ...]:
    """Columns: a fault's onset is known for some runs only."""
    return (*ALARMS, *(("latency",) if any("latency" in row for row in rows) else ()))


def left_out(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Detectors without a score, and why."""
    return [
        {"detector": _name(row), "status": row["status"], "why": row["remark"]}
        for row in rows
        if row["status"] != "scored"
    ]


def text_table(rows: Sequence[Row]) -> str:
    """The three tables, aligned."""
    parts = [ranking_table(rows), alarm_table(rows), left_out(rows)]
    return "\n\n".join(_aligned(part) for part in parts if part)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per detector; each metric has a column for its value and two for its interval."""
    metrics = [*RANKING, *_alarms(rows)]
    ends = {"": "value", "_low": "low", "_high": "high"}
    names = ["name", "status", "control", "reads"]
    names += [f"{metric}{end}" for metric in metrics for end in ends]
    names += [*COSTS, "remark"]
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            flat = {
                f"{metric}{end}": row[metric][key]
                for metric in metrics
                if metric in row
                for end, key in ends.items()
            }
            writer.writerow(row | flat)


def estimate(value: Mapping[str, float | None]) -> str:
    """`0.81 [0.75, 0.86]`, a dash where the episodes do not define it."""
    numbers = [value.get(name) for name in ("value", "low", "high")]
    if None in numbers:
        return "–"
    shown, low, high = (f"{number:.2f}" for number in numbers)
    return f"{shown} [{low}, {high}]"


def _name(row: Row) -> str:
    return f"{row['name']} (control)" if row["control"] else row["name"]


def _aligned(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
