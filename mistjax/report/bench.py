"""A comparison of detectors (`detect.bench`) as one HTML page: how well each ranks failures, what
its alarms do, what was left out, and how the numbers were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mistjax.detect.bench.rows import Row
from mistjax.detect.bench.table import alarm_table, estimate, left_out, ranking_table, scored
from mistjax.report.blocks import Block, Facts, Plot, Table, Text
from mistjax.report.html import Section, write_report
from mistjax.report.style import ARMS, FONT_SIZE, LIGHT, label, legend, new_axes

CURVES = 4


def write_page(rows: Sequence[Row], about: Mapping[str, Any], out: Path) -> None:
    """Writes the page, whole or not at all."""
    sections = [_results(rows, about), _alarms(rows, about), *_left_out(rows), _made(about)]
    parts = about["split"]
    subtitle = (
        f"Policy `{about['policy']}`, {parts['test']['episodes']} test episodes, "
        f"{parts['test']['failures']} of them failures."
    )
    write_report(sections, out, "Failure detectors compared", subtitle)


def _results(rows: Sequence[Row], about: Mapping[str, Any]) -> Section:
    ranked = scored(rows)
    facts: dict[str, tuple[str, str]] = {}
    for kind, control in (("best detector", False), ("best control", True)):
        best = next((row for row in ranked if row["control"] is control), None)
        if best is not None:
            facts[f"{kind}, ROC-AUC"] = estimate(best["roc_auc"]).split()[0], f"`{best['name']}`"
    shares = {name: part["episodes"] for name, part in about["split"].items()}
    facts["episodes"] = (
        str(sum(shares.values())),
        ", ".join(f"{n} {name}" for name, n in shares.items()),
    )
    text = Text(
        "The largest score before the earliest stop: the length of the shortest episode of the "
        "same task, so that an episode's length gives nothing away. `Full` looks at whole "
        "episodes and rewards knowing that failures last longer. Controls do not read the "
        "features: a detector that does not beat them tells nothing."
    )
    caption = (
        "Brackets are 95% bootstrap intervals over test episodes. Fit: wall time including "
        "compilation. Step: one inference of one episode, scored in the test batch."
    )
    blocks: list[Block] = [Facts(facts), text]
    if ranked:
        blocks += [
            Plot(auc_figure(ranked), title="ROC-AUC by earliest stop, 95% interval"),
            Table(ranking_table(rows), caption),
        ]
    return Section("Ranking", blocks)


def _alarms(rows: Sequence[Row], about: Mapping[str, Any]) -> Section:
    alpha, parts = about["settings"]["alpha"], about["split"]
    calibrated = parts["calibration"]["episodes"] - parts["calibration"]["failures"]
    shape = "" if about["settings"]["band"] == "constant" else ", 30% of which shape the band,"
    text = Text(
        f"Each threshold is calibrated on {calibrated} successes{shape} so that at most "
        f"{alpha:.0%} of successes raise an alarm on average over calibration sets. Detection time "
        "is the share of an episode that had passed at the first alarm, averaged over failures; 1 "
        "for a failure without one."
    )
    caption = (
        "Detected and false alarms have Wilson intervals, the others bootstrap intervals, all 95%. "
        "Latency, where episodes record the onset of a fault: the median number of inferences from "
        "the onset to the next alarm, over failures; to the end if none follows."
    )
    blocks: list[Block] = [text]
    if scored(rows):
        blocks += [
            Table(alarm_table(rows), caption),
            Plot(
                tradeoff_figure(scored(rows)),
                "The best detectors and the control that knows the time only, over all constant "
                "thresholds: up and to the left is better.",
                "How early, how accurate",
            ),
        ]
    return Section("Alarms", blocks)


def _left_out(rows: Sequence[Row]) -> list[Section]:
    table = left_out(rows)
    return [Section("Not compared", [Table(table)])] if table else []


def _made(about: Mapping[str, Any]) -> Section:
    settings = about["settings"]
    runs = [
        {
            "run": f"`{path}`",
            "used for": "training"
            if path in settings["train"]
            else "held out"
            if settings["train"]
            else "all parts",
            "episodes": str(episodes),
        }
        for path, episodes in about["episodes"].items()
    ]
    text = Text(
        f"Hidden states: {', '.join(f'`{name}`' for name in about['hidden'])}, pooled by "
        f"`{settings['pool']}`, z-scored with the training statistics. Tasks: {about['tasks']}"
        + (f", grouped by `{settings['group']}`" if settings["group"] else "")
        + f". Split by environment seed with seed {settings['seed']}. Policy fingerprint "
        f"`{about['policy_fingerprint'][:12]}`."
    )
    return Section("How this was made", [text, Table(runs)])


def auc_figure(rows: Sequence[Row]) -> Figure:
    """ROC-AUC by earliest stop with its interval; controls in grey, chance dotted."""
    rows = [row for row in rows if row["roc_auc"]["value"] is not None]
    figure, axes = new_axes(7.2, 0.9 + 0.26 * len(rows))
    places = np.arange(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        auc = row["roc_auc"]
        color = LIGHT["muted"] if row["control"] else LIGHT["score"]
        if auc["low"] is not None:
            axes.plot([auc["low"], auc["high"]], [place, place], color=color, linewidth=1.6)
        axes.plot(auc["value"], place, "o", color=color, markersize=5.5)
        axes.text(
            1.02,
            place,
            f"{auc['value']:.2f}",
            va="center",
            fontsize=FONT_SIZE - 1,
            color=LIGHT["ink"],
        )
    axes.axvline(0.5, color=LIGHT["muted"], linewidth=1, linestyle=(0, (2, 3)))
    names = [f"{row['name']}, control" if row["control"] else row["name"] for row in rows]
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", labelsize=FONT_SIZE - 1, labelcolor=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=LIGHT["line"], linewidth=0.8)
    axes.set_xlim(0, 1.08)
    axes.set_xticks(np.linspace(0, 1, 6))
    label(axes)
    return figure


def tradeoff_figure(rows: Sequence[Row]) -> Figure:
    """Balanced accuracy against detection time of the best detectors and the time-only control."""
    best = [row for row in rows if not row["control"]][:CURVES]
    shown = best + [row for row in rows if row["name"] == "trajectory_length"]
    figure, axes = new_axes(7.2, 3.6)
    for number, row in enumerate(shown):
        time, accuracy = (np.asarray(row["curve"][name]) for name in ("time", "bal_acc"))
        order = np.argsort(time)
        color = LIGHT["muted"] if row["control"] else ARMS[1 + number % (len(ARMS) - 1)]
        # the best accuracy reached by each time
        reached = np.maximum.accumulate(accuracy[order])
        axes.step(time[order], reached, where="post", color=color, linewidth=1.8, label=row["name"])
    axes.set_xlim(0, 1)
    label(axes, "mean detection time of failures, share of the episode", "balanced accuracy")
    legend(axes, ncols=3)
    return figure
