"""Episodes as video: the instruction above, the cameras, the score and its threshold below.

A label says what the monitor is doing: watching, ALARM, steering or repairing; and at the end, how
the episode turned out. Another label says what was broken on purpose, from its onset.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from mistjax.report.strip import Strip, font, watched
from mistjax.report.style import DARK
from mistjax.rollouts.mp4 import enlarge, write_mp4
from mistjax.rollouts.trace import Trace

_HOLD_SECONDS = 1.2
_BAR, _PAD = 36, 12


def write_overlay(
    path: Path,
    trace: Trace,
    frames: UInt8[np.ndarray, "frames height width 3"],
    fps: float = 10.0,
) -> None:
    """Writes the annotated episode as mp4.

    Args:
        path: file to write.
        trace: the episode.
        frames: one before each action and one after the last, as `Trace.frames` or decoded from
            `Run.video`; small ones are enlarged to about 384 pixels by repeating pixels.
        fps: frames per second; the last frame is held a little longer.
    """
    write_mp4(path, overlay(trace, frames, hold=round(_HOLD_SECONDS * fps)), fps)


def overlay(
    trace: Trace, frames: UInt8[np.ndarray, "frames height width 3"], hold: int = 0
) -> UInt8[np.ndarray, "shown big_h big_w 3"]:
    """The annotated frames, the last one repeated another `hold` times.

    Raises:
        ValueError: the frames are not those of the episode.
    """
    if len(frames) != len(trace.actions) + 1:
        raise ValueError(
            f"{len(frames)} frames for an episode of {len(trace.actions)} steps: expected one "
            "before each step and one after the last."
        )
    pictures = enlarge(frames)
    width = pictures.shape[2]
    unit = min(max(width / 560, 1.0), 2.0)
    strip = Strip.of(trace, width, unit)
    plots = [strip.until(count) for count in range(len(trace.chunks) + 1)] if strip else []
    known = np.searchsorted(trace.inference_step, np.arange(len(pictures)), side="right")
    drawn = [
        _draw(trace, picture, step, plots[known[step]] if plots else None, unit)
        for step, picture in enumerate(pictures)
    ]
    return np.stack(drawn + [drawn[-1]] * hold)


def _draw(
    trace: Trace, picture: np.ndarray, step: int, plot: Image.Image | None, unit: float
) -> np.ndarray:
    height, width = picture.shape[:2]
    bar, pad = round(_BAR * unit), _PAD * unit
    below = plot.height if plot is not None else 0
    canvas = Image.new("RGB", (width, bar + height + below), DARK["paper"])
    canvas.paste(Image.fromarray(picture), (0, bar))
    draw = ImageDraw.Draw(canvas)
    clock, small, large = f"step {step}", font(13 * unit), font(14 * unit)
    draw.text((width - pad, bar / 2), clock, DARK["muted"], small, anchor="rm")
    room = width - 4 * pad - draw.textlength(clock, small)
    caption = _fit(f"“{trace.prompt}”", large, room)
    draw.text((pad, bar / 2), caption, DARK["ink"], large, anchor="lm")
    top = bar + pad
    for word, role in (status(trace, step), (broken(trace, step), "ink")):
        if word:
            bold = font(13.5 * unit, bold=True)
            right, middle = pad + draw.textlength(word, bold) + 20 * unit, top + 13 * unit
            box = [pad, middle - 13 * unit, right, middle + 13 * unit]
            draw.rounded_rectangle(box, 13 * unit, fill=DARK[role])
            draw.text((pad + 10 * unit, middle), word, DARK["paper"], bold, anchor="lm")
            top += 32 * unit
    if plot is not None:
        canvas.paste(plot, (0, bar + height))
    return np.asarray(canvas)


def status(trace: Trace, step: int) -> tuple[str, str]:
    """The label at an env step and the palette role that colours it; no text without a monitor."""
    if step >= len(trace.actions):
        if trace.error is not None:
            return "crashed", "muted"
        if trace.success:
            return "success", "good"
        return f"failed: {(trace.failure_cause or 'task not done').replace('_', ' ')}", "alarm"
    now = int(np.searchsorted(trace.inference_step, step, side="right")) - 1
    name, _, _, alarms = watched(trace)
    if alarms is None or now < 0:
        return "", "muted"
    if trace.edited is not None and trace.edited[now]:
        doing = "steering" if name == "failure score" else "repairing"
        return (f"ALARM · {doing}" if alarms[now] else doing), "steer"
    return ("ALARM", "alarm") if alarms[now] else ("watching", "good")


def broken(trace: Trace, step: int) -> str:
    """What is broken on purpose at an env step; "" while nothing is."""
    onset = trace.info.get("fault_onset")
    if onset is None or step < onset:
        return ""
    return f"fault: {trace.info['fault'].replace('_', ' ')}"


def _fit(text: str, letters: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of it as fits, with an ellipsis."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
