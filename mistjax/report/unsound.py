"""Which input was unsound: how often one was named, and how often rightly; then single alarms, each
with its sentence, the pictures and the score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from mistjax.attribute.naming import UNUSUAL, sentence
from mistjax.envs.faults.battery import INPUTS, input_name
from mistjax.report import plots
from mistjax.report.blocks import Block, Picture, Plot, Quote, Row, Table, Text
from mistjax.report.html import Section
from mistjax.rollouts.plan import BOARD_ENV
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace
from mistjax.stats import Rate

_BOARD = ("x", "y", "z", "opening", "last gripper command")
STATE_NAMES: Mapping[str, tuple[str, ...]] = {"board": _BOARD, "board_fast": _BOARD}
"""Names of the entries of a preset's state."""
NOBODY = "none of the inputs"
_SHOWN = 4


def right_answers(place: str) -> tuple[str | None, ...]:
    """The right names for a fault at a place: a camera for what changes the scene, None for what
    changes the motion.
    """
    if place in INPUTS:
        return (place,)
    return INPUTS[:2] if place == "scene" else (None,)


def unsound(runs: Mapping[str, Run]) -> list[Section]:
    """The section on unsound inputs; none where no run was watched for them."""
    watched = {name: run for name, run in runs.items() if run.config.get("inputs")}
    if not watched:
        return []
    name, run = next(iter(watched.items()))
    blocks: list[Block] = [
        Text(
            "An alarm apart from the failure score's: something that the policy reads, or what "
            "its actions do, is not as in clean episodes, whether or not the episode fails "
            "because of it. The first such alarm of an episode names the input."
        ),
        Table(
            list(_rows(run)),
            f"Arm {name}; brackets are 95% Wilson intervals. Named rightly: of the first alarms "
            "that are not before the fault begins (the input itself; for the scene a camera; for "
            "a push and for actuators, none of the inputs). Delay: median from the onset of the "
            "fault to the alarm.",
            "What was named",
        ),
    ]
    for trace in _examples(run):
        blocks += _alarm(trace, run.config["inputs"])
    return [Section("Which input", blocks)]


def said(run: Run) -> str:
    """One line for the terminal: how many alarms, the sentence of the first, and whether the
    monitor seems to be calibrated for other conditions.
    """
    rows = [row for row in run.finished if row["named_step"] is not None]
    line = f"something is unsound in {Rate(len(rows), len(run.finished))}"
    for row in rows[:1]:
        trace = run.trace(row["seed"])
        if (words := alarm_sentence(trace, run.config.get("inputs", ()))) is not None:
            line += f"; seed {trace.seed}, step {row['named_step']}: {words}"
    if len(rows) > 1 and all(row["named_step"] == 0 for row in run.finished):
        line += (
            " Every episode alarms at its first look: these are not the conditions that the "
            "monitor was calibrated under, sensor noise (--sensor-noise True) among them."
        )
    return line


def _rows(run: Run) -> Iterable[dict[str, str]]:
    places: dict[str, list[Mapping]] = {}
    for row in run.finished:
        places.setdefault(row["fault_input"] or "", []).append(row)
    for place, rows in sorted(places.items()):
        alarms = [row for row in rows if row["named_step"] is not None]
        later = [row for row in alarms if place and row["named_step"] >= row["fault_onset"]]
        hits = sum(row["named_input"] in right_answers(place) for row in later)
        delays = [row["named_step"] - row["fault_onset"] for row in later]
        names = [row["named_input"] or NOBODY for row in alarms]
        yield {
            "fault in": place or "no fault",
            "episodes": str(len(rows)),
            "with an alarm": str(Rate(len(alarms), len(rows))),
            "before the fault": str(len(alarms) - len(later)) if place else "–",
            "named rightly": str(Rate(hits, len(later))) if later else "–",
            "delay, steps": f"{np.median(delays):.0f}" if delays else "–",
            "named": ", ".join(f"{n} {names.count(n)}" for n in sorted(set(names))) or "nothing",
        }


def _examples(run: Run) -> list[Trace]:
    """Alarms of different kinds, those with pictures first."""
    rows = [row for row in run.finished if row["named_step"] is not None]
    rows.sort(key=lambda row: (run.video(row["seed"]) is None, row["seed"]))
    kinds: dict[tuple, Mapping] = {}
    for row in rows:
        kinds.setdefault((row["fault_input"], row["named_input"]), row)
    return [run.trace(row["seed"]) for row in list(kinds.values())[:_SHOWN]]


def first_named(trace: Trace) -> int | None:
    """The inference at which an input was first named; None if none was."""
    if trace.named is None or not (trace.named >= 0).any():
        return None
    return int(np.argmax(trace.named >= 0))


def alarm_sentence(trace: Trace, inputs: Sequence[str]) -> str | None:
    """What the monitor of the inputs says at its first alarm; None without one, and for an episode
    that was recorded without the evidence.
    """
    first = first_named(trace)
    if first is None or "evidence/ratios" not in trace.aux or not inputs:
        return None
    assert trace.named is not None and trace.input_threshold is not None
    at = {
        name.removeprefix("evidence/"): value[first]
        for name, value in trace.aux.items()
        if name.startswith("evidence/")
    }
    at |= {"named": trace.named[first], "threshold": trace.input_threshold[first]}
    prompts = (trace.prompt, str(trace.info.get("named_prompt", trace.prompt)))
    names = _BOARD if trace.env_id == BOARD_ENV else ()
    return sentence(at, inputs, names, prompts)


def unusual_cells(
    seen: UInt8[np.ndarray, "h w 3"], cells: Float[np.ndarray, "rows columns"], height: int = 384
) -> UInt8[np.ndarray, "big_h big_w 3"] | None:
    """A picture with the cells marked that are unlike clean episodes; None if there are none, or if
    the cells do not tile it.
    """
    fits = not (seen.shape[0] % cells.shape[0] or seen.shape[1] % cells.shape[1])
    if not fits or cells.max() < UNUSUAL:
        return None
    return plots.heatmap(seen, np.where(cells >= UNUSUAL, cells, 0), height)


def _alarm(trace: Trace, inputs: Sequence[str]) -> list[Block]:
    """A first alarm: the sentence, the pictures with their unusual cells, the score."""
    words, first = alarm_sentence(trace, inputs), first_named(trace)
    if words is None or first is None:
        return []
    fault = trace.info.get("fault")
    truth = "no fault"
    if fault is not None:
        strength, onset = trace.info["fault_strength"], trace.info["fault_onset"]
        truth = f"`{fault}` at strength {strength:g} from step {onset} on"
    step = int(trace.inference_step[first])
    blocks: list[Block] = [Quote(words, f"Seed {trace.seed}, at step {step}; in truth: {truth}.")]
    pictures: list[Block] = []
    cameras = {input_name(key): frames[first] for key, frames in trace.images.items()}
    for number, name in enumerate(inputs):
        if name not in cameras:
            continue
        seen, cells = cameras[name], trace.aux["evidence/cells"][first][number]
        factor = max(1, 384 // seen.shape[0])
        pictures.append(Picture(seen.repeat(factor, 0).repeat(factor, 1), title=f"camera {name}"))
        heat = unusual_cells(seen, cells)
        if heat is not None:
            title = f"{name}: cells up to {cells.max():.0f} standard deviations from clean episodes"
            pictures.append(Picture(heat, title=title))
    if pictures:
        blocks.append(Row(pictures, least=210))
    watched = dataclasses.replace(
        trace,
        score=trace.input_score,
        threshold=trace.input_threshold,
        alarm=trace.unsound,
        edited=None,
    )
    return [*blocks, Plot(plots.score_curve(watched, "largest score of the inputs"))]
