"""The figures of a report. Each takes plain arrays or summaries and returns a matplotlib `Figure`.

Every rate is drawn with its 95% interval and n; a threshold that is infinite is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mistjax.report.style import ARMS, FONT_SIZE, LIGHT, label, legend, new_axes
from mistjax.rollouts.trace import Trace
from mistjax.stats import Rate

_HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#2b0a4d", "#8b1a6b", "#e0453f", "#fb9f2b", "#fdf3a3"]
)


def score_curve(trace: Trace, name: str = "failure score") -> Figure:
    """One episode: score, threshold, first alarm, and where the action was steered.

    Raises:
        ValueError: the episode has no scores.
    """
    score = _score(trace)
    figure, axes = new_axes(6.4, 2.6)
    _threshold(axes, [trace])
    axes.plot(trace.inference_step, score, color=LIGHT["score"], linewidth=2, label=name)
    if trace.edited is not None and trace.edited.any():
        low = axes.get_ylim()[0]
        steered = np.where(trace.edited, low, np.nan)
        axes.plot(
            trace.inference_step,
            steered,
            color=LIGHT["steer"],
            linewidth=5,
            solid_capstyle="butt",
            label="steered",
        )
    first = _first_alarm(trace)
    if first is not None:
        axes.axvline(trace.inference_step[first], color=LIGHT["alarm"], linewidth=1, alpha=0.6)
        axes.plot(
            trace.inference_step[first],
            score[first],
            "o",
            color=LIGHT["alarm"],
            markersize=7,
            label="alarm",
        )
    label(axes, "env step")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)
    return figure


def share_lines(
    steps: Int[np.ndarray, " n"], shares: Mapping[str, Float[np.ndarray, " n"]]
) -> Figure:
    """The share of each input against the env step, one line per input."""
    figure, axes = new_axes(6.4, 2.6)
    for (name, values), color in zip(shares.items(), ARMS[1:], strict=False):
        axes.plot(steps, values, "o-", color=color, linewidth=1.8, markersize=3.5, label=name)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    label(axes, "env step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)
    return figure


def grid(
    values: Float[np.ndarray, "rows columns"],
    x: str,
    y: str = "layer",
    groups: Mapping[str, tuple[int, int]] | None = None,
) -> Figure:
    """A heat map with the first row at the bottom; `groups` names runs of columns. Colours run from
    0 to the larger of 1 and the largest value; what is below 0 is drawn as 0.
    """
    rows, columns = values.shape
    figure, axes = new_axes(min(1.6 + 0.16 * columns, 9.6), 1.5 + 0.24 * rows)
    shown = np.clip(np.nan_to_num(values), 0, None)
    mesh = axes.pcolormesh(shown, cmap=_HEAT, vmin=0, vmax=max(1.0, float(shown.max())))
    axes.grid(visible=False)
    label(axes, x, y)
    axes.set_yticks(np.arange(rows) + 0.5, [str(i + 1) for i in range(rows)])
    if groups is None:
        step = max(1, columns // 12)
        axes.set_xticks(
            np.arange(0, columns, step) + 0.5, [str(i + 1) for i in range(0, columns, step)]
        )
    else:
        axes.set_xticks([(a + b) / 2 for a, b in groups.values()], list(groups))
        for start, _ in list(groups.values())[1:]:
            axes.axvline(start, color=LIGHT["card"], linewidth=1.2)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=FONT_SIZE - 1.5, colors=LIGHT["muted"], length=0)
    return figure


def score_curves(traces: Sequence[Trace]) -> Figure:
    """Many episodes in one plot, successes against failures, with the threshold.

    Raises:
        ValueError: no episode, or one has no scores.
    """
    if not traces:
        raise ValueError("no traces to draw: expected at least one episode with scores.")
    figure, axes = new_axes(5.4, 3.1)
    alpha = float(np.clip(8 / len(traces), 0.18, 0.8))
    for success, color, name in ((True, "good", "success"), (False, "alarm", "failure")):
        group = [trace for trace in traces if trace.success is success]
        for i, trace in enumerate(group):
            axes.plot(
                trace.inference_step,
                _score(trace),
                color=LIGHT[color],
                linewidth=1.2,
                alpha=alpha,
                label=f"{name} (n = {len(group)})" if i == 0 else None,
            )
            first = _first_alarm(trace)
            if first is not None:
                axes.plot(
                    trace.inference_step[first],
                    _score(trace)[first],
                    "o",
                    color=LIGHT[color],
                    markersize=4,
                )
    _threshold(axes, traces)
    label(axes, "env step", "failure score")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)
    for handle in axes.get_legend().legend_handles:  # type: ignore[union-attr]
        if handle is not None:
            handle.set_alpha(1)
    return figure


def success_bars(rates: Mapping[str, Rate], baseline: str | None = None) -> Figure:
    """Success rate of each arm with its Wilson interval; a dotted line continues the baseline."""
    figure, axes = new_axes(6.4, 0.9 + 0.52 * len(rates))
    places = np.arange(len(rates))[::-1]
    for place, rate, color in zip(places, rates.values(), _arm_colors(len(rates)), strict=True):
        low, high = rate.interval
        value = 0.0 if rate.n == 0 else rate.value
        axes.barh(place, value, height=0.62, color=color, alpha=0.85)
        axes.plot([low, high], [place, place], color=LIGHT["ink"], linewidth=1.4)
        axes.plot([low, high], [place, place], "|", color=LIGHT["ink"], markersize=8)
        text = f"{value:.0%}  ({rate.k}/{rate.n})" if rate.n else "no episode"
        axes.text(1.03, place, text, va="center", fontsize=FONT_SIZE - 0.5, color=LIGHT["ink"])
    if baseline is not None:
        axes.axvline(
            rates[baseline].value, color=LIGHT["muted"], linewidth=1, linestyle=(0, (2, 3))
        )
    axes.set_yticks(places, list(rates))
    axes.tick_params(axis="y", labelsize=FONT_SIZE, labelcolor=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=LIGHT["line"], linewidth=0.8)
    axes.set_xlim(0, 1.3)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.spines["bottom"].set_visible(False)
    label(axes, "success, with the 95% Wilson interval")
    return figure


def latency_histogram(milliseconds: Mapping[str, Float[np.ndarray, " n"]]) -> Figure:
    """Wall time of an inference by arm, with the median; the slowest percent is cut off."""
    figure, axes = new_axes(6.4, 2.8)
    everything = np.concatenate(list(milliseconds.values()))
    low, high = everything.min() * 0.95, np.quantile(everything, 0.99) * 1.05
    bins = np.linspace(low, max(high, low + 1e-3), 40)
    colors = _arm_colors(len(milliseconds))
    for (name, values), color in zip(milliseconds.items(), colors, strict=True):
        median = float(np.median(values))
        style = {"bins": bins, "density": True, "color": color}
        axes.hist(values, **style, alpha=0.28)
        axes.hist(
            values,
            **style,
            histtype="step",
            linewidth=1.4,
            label=f"{name}: median {median:.1f} ms (n = {len(values)})",
        )
        axes.axvline(median, color=color, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_yticks([])
    axes.grid(visible=False)
    label(axes, "milliseconds per batched inference")
    legend(axes, ncols=1 + (len(milliseconds) > 2))
    return figure


def effect_lines(
    doses: Float[np.ndarray, " n"],
    effects: Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 2"]]],
    controls: Sequence[Float[np.ndarray, " n"]],
    y: str,
    x: str = "dose",
) -> Figure:
    """Mean change against a dose, one line per effect with its 95% band; controls are grey."""
    figure, axes = new_axes(5.4, 2.9)
    for i, control in enumerate(controls):
        name = f"random neurons (n = {len(controls)})" if i == 0 else None
        axes.plot(doses, control, color=LIGHT["arm0"], linewidth=1, alpha=0.55, label=name)
    for (name, (mean, band)), color in zip(effects.items(), ARMS[1:], strict=False):
        axes.fill_between(doses, band[:, 0], band[:, 1], color=color, alpha=0.18, linewidth=0)
        axes.plot(doses, mean, "o-", color=color, linewidth=1.8, markersize=4, label=name)
    label(axes, x, y)
    legend(axes, ncols=2)
    return figure


def heatmap(
    image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "rows columns"], height: int = 384
) -> UInt8[np.ndarray, "big_h big_w 3"]:
    """Overlays the positive part of a patch map on the picture: what counts more is brighter.

    The picture fades to grey where nothing counts. Pixels are repeated, never blurred: a patch is
    what the model sees.

    Raises:
        ValueError: the patches do not tile the picture.
    """
    if image.shape[0] % heat.shape[0] or image.shape[1] % heat.shape[1]:
        raise ValueError(
            f"a map of {heat.shape} patches does not tile a picture of {image.shape[:2]} pixels."
        )
    positive = np.nan_to_num(np.maximum(heat, 0))
    share = positive / max(float(positive.max()), 1e-12)
    block = (image.shape[0] // heat.shape[0], image.shape[1] // heat.shape[1])
    share = np.kron(share, np.ones(block))[..., None]
    grey = image.mean(-1, keepdims=True)
    base = grey + (image - grey) * (0.25 + 0.75 * share)
    color = 255 * _HEAT(share[..., 0])[..., :3]
    mixed = base + (color - base) * (0.72 * share**0.8)
    factor = max(1, height // image.shape[0])
    return mixed.clip(0, 255).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)


def _score(trace: Trace) -> np.ndarray:
    if trace.score is None:
        raise ValueError(
            f"the episode with seed {trace.seed} has no scores: its policy has no monitor."
        )
    return np.where(np.isfinite(trace.score), trace.score, np.nan)


def _first_alarm(trace: Trace) -> int | None:
    if trace.alarm is None or not trace.alarm.any():
        return None
    return int(np.argmax(trace.alarm))


def _threshold(axes: Axes, traces: Sequence[Trace]) -> None:
    """The threshold of the longest episode (it is the same for all), and the alarm zone above."""
    longest = max(traces, key=lambda trace: len(trace.inference_step))
    if longest.threshold is None or not np.isfinite(longest.threshold).any():
        return
    level = np.where(np.isfinite(longest.threshold), longest.threshold, np.nan)
    every = np.concatenate([_score(trace) for trace in traces] + [level])
    low, high = np.nanmin(every), np.nanmax(every)
    room = 0.08 * max(high - low, 1e-6)
    axes.set_ylim(low - room, high + room)
    x = longest.inference_step
    axes.plot(x, level, color=LIGHT["threshold"], linewidth=1.4, linestyle="--", label="threshold")
    axes.fill_between(x, level, high + room, color=LIGHT["alarm"], alpha=0.06, linewidth=0)


def _arm_colors(n: int) -> list[str]:
    """The first arm grey, the last green, others between."""
    between = [ARMS[1 + i % (len(ARMS) - 2)] for i in range(n - 2)]
    return [ARMS[0], *between, ARMS[-1]][:n] if n > 1 else [ARMS[-1]]
