"""Colours and type of every figure: one palette with a light and a dark value for each role.

Plots are drawn in the light colours. On an HTML page each colour becomes the CSS variable of its
role, so that a plot follows the reader's theme (see `svg.themed`).
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LIGHT = {
    "paper": "#fcfcfb",
    "card": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#626a73",
    "line": "#dde1e6",
    "score": "#2456c7",
    "threshold": "#b4690e",
    "alarm": "#c2261d",
    "good": "#1d7f54",
    "steer": "#7a3fb5",
    "arm0": "#7a838e",
    "arm1": "#2b8fc4",
    "arm2": "#d08a1f",
    "arm3": "#a855a0",
    "arm4": "#8a6d3b",
    "arm5": "#1f9d72",
}
DARK = {
    "paper": "#101317",
    "card": "#171b21",
    "ink": "#e9ecf0",
    "muted": "#98a1ac",
    "line": "#2c333c",
    "score": "#82a7ff",
    "threshold": "#eaa94a",
    "alarm": "#ff7468",
    "good": "#53c494",
    "steer": "#c193f2",
    "arm0": "#98a2ae",
    "arm1": "#5cb8ea",
    "arm2": "#ecb04f",
    "arm3": "#d68acf",
    "arm4": "#c7a974",
    "arm5": "#4fcb9c",
}
ARMS = tuple(LIGHT[name] for name in LIGHT if name.startswith("arm"))

FONT_SIZE = 10.5
_RC_AXES = {"labelsize": FONT_SIZE - 1, "colors": LIGHT["muted"], "length": 0, "pad": 5}


def new_axes(width: float = 6.4, height: float = 3.2) -> tuple[Figure, Axes]:
    """One pair of axes in the house style: left-aligned title, light horizontal grid, no frame."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT["line"])
    axes.tick_params(**_RC_AXES)
    axes.grid(axis="y", color=LIGHT["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def label(axes: Axes, x: str = "", y: str = "") -> None:
    """Axis labels, muted."""
    axes.set_xlabel(x, fontsize=FONT_SIZE - 0.5, color=LIGHT["muted"], labelpad=6)
    axes.set_ylabel(y, fontsize=FONT_SIZE - 0.5, color=LIGHT["muted"], labelpad=6)


def legend(axes: Axes, **kwargs) -> None:
    """A frameless legend above the axes, on the left."""
    kwargs = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": 4} | kwargs
    axes.legend(
        frameon=False,
        fontsize=FONT_SIZE - 1,
        labelcolor=LIGHT["ink"],
        handlelength=1.6,
        columnspacing=1.6,
        borderaxespad=0.3,
        borderpad=0,
        **kwargs,
    )
