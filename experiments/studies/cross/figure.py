"""The comparison in one figure: six panels, one colour a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mistjax.report.style import ARMS, FONT_SIZE, LIGHT, label, legend

METRES_PER_UNIT = 0.02
HERTZ = 10


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes the figure as PNG."""
    figure = Figure(figsize=(13.5, 7.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(hspace=0.09, wspace=0.05)  # type: ignore[union-attr]
    panels = figure.subplots(2, 3)
    subjects = results["subjects"]
    colors = dict(zip(subjects, ARMS[1:], strict=False))
    _success(panels[0, 0], subjects, colors)
    _detection(panels[0, 1], subjects, colors)
    _agreement(panels[0, 2], results)
    for axes, axis in ((panels[1, 0], "speed"), (panels[1, 1], "height")):
        _dose(axes, subjects, colors, axis)
    _overhead(panels[1, 2], subjects, colors)
    for axes in panels.flat:
        axes.tick_params(labelsize=FONT_SIZE - 1, colors=LIGHT["muted"], length=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


def _bar(axes: Axes, x: float, value: float, interval, color: str, text: str, **style) -> None:
    axes.bar(x, value, width=0.36, color=color, **style)
    axes.plot([x, x], interval, color=LIGHT["ink"], linewidth=1.3)
    axes.text(x, interval[1] + 0.02, text, ha="center", fontsize=FONT_SIZE - 2.5)


def _success(axes: Axes, subjects: dict, colors: dict) -> None:
    for i, (name, row) in enumerate(subjects.items()):
        for j, (condition, found) in enumerate(row["success"].items()):
            value = found["k"] / found["n"]
            style = {"alpha": 0.9 if j == 0 else 0.45, "label": condition if i == 0 else None}
            where = i + 0.4 * j - 0.2
            _bar(axes, where, value, found["interval"], colors[name], f"{value:.0%}", **style)
    count = next(iter(subjects.values()))["success"]["nominal"]["n"]
    _names(axes, subjects)
    axes.set_ylim(0, 1.1)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    label(axes, y=f"success (n = {count} paired seeds a bar)")
    legend(axes)


def _detection(axes: Axes, subjects: dict, colors: dict) -> None:
    for i, (name, row) in enumerate(subjects.items()):
        for j, kind in enumerate(("early", "full")):
            found = row["detection"]
            said = {"early": "by earliest stop", "full": "whole episodes"}[kind]
            style = {"alpha": 0.9 if j == 0 else 0.45, "label": said if i == 0 else None}
            interval = found[f"{kind} interval"]
            where = i + 0.4 * j - 0.2
            _bar(axes, where, found[kind], interval, colors[name], f"{found[kind]:.2f}", **style)
    axes.axhline(0.5, color=LIGHT["muted"], linewidth=1, linestyle=(0, (2, 3)))
    _names(axes, subjects)
    axes.set_ylim(0.4, 1.08)
    label(axes, y="failure detection, ROC-AUC (SAFE-MLP)")
    legend(axes)


def _agreement(axes: Axes, results: dict) -> None:
    """A group of rows for each pair of policies, under its title."""
    ticks: dict[int, str] = {}
    titles: dict[str, int] = {}
    y = 0
    for row in results["agreement"]:
        pair = " / ".join(row["pair"])
        if pair not in titles:
            titles[pair] = y
            axes.text(0.01, y, pair, va="center", fontsize=FONT_SIZE - 1, color=LIGHT["ink"])
            y += 1
        for camera, found in row["cameras"].items():
            view = "front" if camera.startswith("base") else "wrist"
            ticks[y] = f"{row['readout']}, {view}"
            axes.plot(found["interval"], [y, y], color=LIGHT["score"], linewidth=2)
            said = ("same scene", "another scene") if len(ticks) == 1 else (None, None)
            axes.plot(found["rho"], y, "o", color=LIGHT["score"], label=said[0])
            grey = LIGHT["muted"]
            axes.plot(found["control"], y, "D", color=grey, markersize=5, label=said[1])
            y += 1
    axes.axvline(0, color=LIGHT["line"], linewidth=1)
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set_ylim(y - 0.5, -0.5)
    label(axes, "rank correlation of patch importance")
    legend(axes)


def _dose(axes: Axes, subjects: dict, colors: dict, axis: str) -> None:
    unit = METRES_PER_UNIT * HERTZ
    for name, row in subjects.items():
        for found in row["steering"]:
            if found["axis"] != axis:
                continue
            dashed = found["recipe"] == "value vectors"
            low, high = unit * np.array(found["interval"]).T
            said = None if dashed else name
            axes.fill_between(
                found["strengths"], low, high, color=colors[name], alpha=0.13, linewidth=0
            )
            axes.plot(
                found["strengths"],
                unit * np.array(found["change"]),
                "--" if dashed else "-",
                color=colors[name],
                label=said,
                linewidth=1.8,
            )
    axes.axhline(0, color=LIGHT["line"], linewidth=1)
    what = {"speed": "change of speed", "height": "change of vertical speed"}[axis]
    words = {"speed": "quickly - slowly", "height": "high - low"}[axis]
    label(axes, f"strength, {words} (dashed: value vectors)", f"{what} (m/s)")
    legend(axes, ncols=2)


def _overhead(axes: Axes, subjects: dict, colors: dict) -> None:
    for i, (name, row) in enumerate(subjects.items()):
        for j, arm in enumerate(("bare", "monitored")):
            low, middle, high = row["overhead"]["ms quartiles"][arm]
            style = {"alpha": 0.9 if j == 0 else 0.45, "label": arm if i == 0 else None}
            axes.bar(i + 0.4 * j - 0.2, middle, width=0.36, color=colors[name], **style)
            axes.plot([i + 0.4 * j - 0.2] * 2, [low, high], color=LIGHT["ink"], linewidth=1.3)
    _names(axes, subjects)
    label(axes, y="ms an inference (median and quartiles)")
    legend(axes)


def _names(axes: Axes, subjects: dict) -> None:
    """Under the bars, a name on each of two heights in turn."""
    names = ["\n" * (i % 2) + name for i, name in enumerate(subjects)]
    axes.set_xticks(range(len(subjects)), names)
