"""The picture of the demo in the README: one episode without a monitor and with MIST, after the
alarm and at its end.

    mistjax demo
    python -m experiments.build.demo_picture

The episode is the first on video that the bare policy fails and MIST does not.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro
from PIL import Image, ImageDraw

from mistjax.report.strip import font
from mistjax.report.style import DARK
from mistjax.report.video import overlay
from mistjax.rollouts.mp4 import read_mp4
from mistjax.rollouts.run import Run, load_run

ARMS = {"bare": "without a monitor", "mist": "with MIST"}
GAP, HEAD = 10, 30


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the demo lies and where its picture goes.

    Attributes:
        demo: what `mistjax demo` wrote.
        out: JPEG to write.
        width: pixels of one of the four frames.
    """

    demo: Path = Path("runs/demo")
    out: Path = Path("docs/assets/demo.jpg")
    width: int = 480


def main(config: Config) -> None:
    """Draws the picture."""
    runs = {arm: load_run(config.demo / "mixture" / arm) for arm in ARMS}
    seed = told_apart(**runs)
    alarm = next(row["named_step"] for row in runs["mist"].rows if row["seed"] == seed)
    rows = {arm: frames(run, seed, alarm, config.width) for arm, run in runs.items()}
    height = GAP + sum(HEAD + row[0].height + GAP for row in rows.values())
    picture = Image.new("RGB", (2 * config.width + 3 * GAP, height), DARK["paper"])
    draw, top = ImageDraw.Draw(picture), GAP
    for arm, row in rows.items():
        draw.text((GAP, top), ARMS[arm], DARK["ink"], font(18, bold=True))
        top += HEAD
        for column, frame in enumerate(row):
            picture.paste(frame, (GAP + column * (config.width + GAP), top))
        top += row[0].height + GAP
    config.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(config.out, quality=85, optimize=True)
    print(f"{config.out}: seed {seed}, alarm at step {alarm}, {config.out.stat().st_size} bytes")


def told_apart(bare: Run, mist: Run) -> int:
    """The first seed on video that `bare` fails and `mist` does not.

    Raises:
        ValueError: there is none.
    """
    failed = {row["seed"] for row in bare.finished if not row["success"]}
    for row in mist.finished:
        if row["success"] and row["seed"] in failed and mist.video(row["seed"]):
            return row["seed"]
    raise ValueError(f"no episode on video in {mist.path} was repaired: play more of them.")


def frames(run: Run, seed: int, alarm: int, width: int) -> list[Image.Image]:
    """The annotated frames of an episode a little after a step, and at its end."""
    video = run.video(seed)
    if video is None:
        raise ValueError(f"{run.path} has no video of seed {seed}: play the demo again.")
    drawn = overlay(run.trace(seed), read_mp4(video)[0])
    shown = [Image.fromarray(drawn[at]) for at in (min(alarm + 4, len(drawn) - 1), -1)]
    return [
        frame.resize((width, round(frame.height * width / frame.width)), Image.Resampling.LANCZOS)
        for frame in shown
    ]


if __name__ == "__main__":
    main(tyro.cli(Config))
