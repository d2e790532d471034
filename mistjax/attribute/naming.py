"""What a monitor of the inputs says in words: which input, and the evidence in numbers.

A gradient of the failure score is not asked: it says what the score depends on, which is another
question and names the unsound input no better than chance (`docs/results.md`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mistjax.detect.novelty.monitor import STREAMS, InputEvidence, InputMonitor
from mistjax.envs.faults.battery import input_name

EVIDENCE = tuple(field.name for field in dataclasses.fields(InputEvidence))


def describe_inputs(
    monitor: InputMonitor, evidence: InputEvidence, row: int, state_names: tuple[str, ...] = ()
) -> str:
    """One sentence about one observation of a batch.

    Args:
        monitor: what said it.
        evidence: of a batch of looks, [B,...].
        row: which.
        state_names: what the entries of the state mean.
    """
    at = {name: np.asarray(getattr(evidence, name))[row] for name in EVIDENCE}
    if not at["unsound"]:
        return "All inputs look as in clean episodes."
    named = int(at["named"])
    suspect = int(at["suspect"])
    kind = "camera" if suspect < len(monitor.cameras) else monitor.inputs[suspect]
    score = int(np.argmax(at["ratios"][suspect]))
    size = f"{at['ratios'][suspect, score]:.1f} times its 95% limit in clean episodes"
    why = f"{STREAMS[kind][score]} {size}, alarm above {float(at['threshold']):.1f}"
    if named == len(monitor.inputs):
        return (
            f"None of the inputs: the robot did not go where it was told ({why}), and the cameras "
            "saw it where the state says it is. A push, or an actuator."
        )
    where = _where(monitor, at, named, state_names)
    if kind == "state" and at["sides"]:
        where += f"; the cameras agree with the commands, by {at['sides']:.1f} standard deviations"
    return f"Unsound: {_title(monitor, named)} ({why}){where}."


def _title(monitor: InputMonitor, named: int) -> str:
    name = monitor.inputs[named]
    if name in monitor.cameras:
        return f"camera {name}"
    return {"state": "the state", "text": f"the {input_name('text')}"}[name]


def _where(monitor: InputMonitor, at: dict, named: int, state_names: tuple[str, ...]) -> str:
    """Within the input: cells of a picture, an entry of the state, words."""
    if named < len(monitor.cameras):
        cells = at["cells"][named]
        if not cells.any():
            return ""
        rows, columns = np.nonzero(cells >= max(cells.max() / 2, 3.0))
        if not len(rows):
            return ""
        return (
            f", most in {len(rows)} of {cells.size} cells: rows {rows.min() + 1} to "
            f"{rows.max() + 1}, columns {columns.min() + 1} to {columns.max() + 1}"
        )
    if monitor.inputs[named] == "state":
        entry = int(np.argmax(np.abs(at["entries"])))
        name = state_names[entry] if entry < len(state_names) else f"entry {entry}"
        return f", most in {name}: {at['entries'][entry]:+.1f} standard deviations from the command"
    places = np.flatnonzero(at["words"]) + 1
    return f", token {', '.join(map(str, places))}" if len(places) else ""
