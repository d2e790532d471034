"""The plot of the score under a video frame: threshold and alarm zone from the start, the score so
far, and a dashed line where a fault began.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cache

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from mistjax.report.style import DARK
from mistjax.rollouts.trace import Trace

_SMOOTH = 2  # drawn this much larger and reduced, for smooth lines
_PAD, _HEAD, _PLOT = 12, 30, 62


@dataclasses.dataclass(frozen=True)
class Strip:
    """What all frames of the plot share.

    Attributes:
        background: threshold, alarm zone and base line, enlarged by `_SMOOTH`.
        points: the score in pixels of the background, [N,2].
        alarm: the inference of the first alarm.
        text: score and threshold at each inference, as text.
        unit: size of everything drawn, relative to a width of 560 pixels.
        name: of the score.
    """

    background: Image.Image
    points: np.ndarray
    alarm: int | None
    text: tuple[tuple[str, str], ...]
    unit: float
    name: str

    @classmethod
    def of(cls, trace: Trace, width: int, unit: float) -> Strip | None:
        """The plot of an episode; None if its policy has no monitor."""
        name, score, level, alarms = watched(trace)
        if score is None or not len(score):
            return None
        score = np.asarray(score, float)
        level = np.full_like(score, np.inf) if level is None else level
        known = np.concatenate([score[np.isfinite(score)], level[np.isfinite(level)], [0.0]])
        low, high = known.min(), max(known.max(), known.min() + 1e-6)
        pad, head, plot = (size * unit * _SMOOTH for size in (_PAD, _HEAD, _PLOT))
        left, right, bottom = pad, width * _SMOOTH - pad, head + plot

        def height(values: np.ndarray) -> np.ndarray:
            return bottom - (values - low) / (high - low) * plot

        x = left + trace.inference_step / max(len(trace.actions), 1) * (right - left)
        size = (width * _SMOOTH, round((_HEAD + _PLOT + _PAD) * unit) * _SMOOTH)
        background = Image.new("RGB", size, DARK["card"])
        draw = ImageDraw.Draw(background, "RGBA")
        draw.line([(left, bottom), (right, bottom)], DARK["line"], round(2 * unit))
        finite = np.isfinite(level)
        if finite.any():
            line = _pairs(x[finite], height(level[finite]))
            line.append((right, line[-1][1]))
            zone = [(line[0][0], head), *line, (right, head)]
            draw.polygon(zone, fill=(255, 116, 104, 30))
            draw.line(line, DARK["threshold"], round(3 * unit), joint="curve")
        onset = trace.info.get("fault_onset")
        if onset is not None and onset < len(trace.actions):
            at = left + onset / len(trace.actions) * (right - left)
            for y in range(round(head), round(bottom), round(8 * unit)):
                draw.line([(at, y), (at, y + 4 * unit)], DARK["ink"], round(2 * unit))
        alarm = None if alarms is None or not alarms.any() else int(np.argmax(alarms))
        text = tuple(
            (f"{s:.2f}", f"{b:.2f}" if np.isfinite(b) else "none")
            for s, b in zip(score, level, strict=True)
        )
        y = np.where(np.isfinite(score), height(score), head)
        return cls(background, np.stack([x, y], -1), alarm, text, unit, name)

    def until(self, count: int) -> Image.Image:
        """The plot as known after the first `count` inferences."""
        picture = self.background.copy()
        draw = ImageDraw.Draw(picture)
        points = _pairs(*self.points[:count].T)
        if count > 1:
            draw.line(points, DARK["score"], round(4 * self.unit), joint="curve")
        alarm = self.alarm if self.alarm is not None and self.alarm < count else None
        if alarm is not None:
            x, y = points[alarm]
            top, bottom = _HEAD * self.unit * _SMOOTH, (_HEAD + _PLOT) * self.unit * _SMOOTH
            draw.line([(x, top), (x, bottom)], DARK["alarm"], round(2 * self.unit))
            draw.circle((x, y), 9 * self.unit, DARK["alarm"])
        if count:
            draw.circle(points[-1], 7 * self.unit, DARK["score" if alarm is None else "alarm"])
        picture = picture.reduce(_SMOOTH)
        if count:
            self._write(picture, *self.text[count - 1])
        return picture

    def _write(self, picture: Image.Image, score: str, level: str) -> None:
        draw, letters = ImageDraw.Draw(picture), font(13 * self.unit)
        x = _PAD * self.unit
        for word, role in (
            (f"{self.name} ", "muted"),
            (f"{score}   ", "score"),
            ("threshold ", "muted"),
            (level, "threshold"),
        ):
            draw.text((x, _HEAD * self.unit / 2), word, DARK[role], letters, anchor="lm")
            x += draw.textlength(word, letters)


Watch = tuple[str, np.ndarray | None, np.ndarray | None, np.ndarray | None]


def watched(trace: Trace) -> Watch:
    """(name, score, threshold, alarms) of the failure monitor, or of the monitor of inputs if there
    is none.
    """
    if trace.score is None and trace.input_score is not None:
        return "input score", trace.input_score, trace.input_threshold, trace.unsound
    return "failure score", trace.score, trace.threshold, trace.alarm


@cache
def font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The typeface of all text in videos; it comes with matplotlib."""
    weight = "bold" if bold else "normal"
    return ImageFont.truetype(findfont(f"DejaVu Sans:weight={weight}"), size)


def _pairs(x: Iterable[float], y: Iterable[float]) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
