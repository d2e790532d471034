"""What a monitor of the inputs says in words: which input, and the evidence in numbers.

No gradient of the failure score is used: it says what the score depends on, which is another
question; `docs/results.md` says how seldom it names the unsound input. See `namers`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mistjax.detect.novelty.monitor import STREAMS, InputEvidence, InputMonitor
from mistjax.envs.faults.battery import input_name

UNUSUAL = 3.0
"""Standard deviations from which on a cell of a picture is pointed out."""
EVIDENCE = tuple(field.name for field in dataclasses.fields(InputEvidence))


def describe_inputs(
    monitor: InputMonitor, evidence: InputEvidence, row: int, state_names: Sequence[str] = ()
) -> str:
    """One sentence about one observation of a batch.

    Args:
        monitor: what said it.
        evidence: of a batch, [B,...].
        row: index in the batch.
        state_names: what the entries of the state mean.
    """
    at = {name: np.asarray(getattr(evidence, name))[row] for name in EVIDENCE}
    if not at["unsound"]:
        return "All inputs look as in clean episodes."
    return sentence(at, monitor.inputs, state_names)


def sentence(
    at: Mapping[str, Any],
    inputs: Sequence[str],
    state_names: Sequence[str] = (),
    prompts: tuple[str, str] | None = None,
) -> str:
    """What is unsound at an alarm, and why it is said.

    Args:
        at: `InputEvidence` of one batch element, arrays and numbers: `ratios`, `named`,
            `threshold`, `sides`, `cells`, `entries` and `words`.
        inputs: names of the inputs: cameras, state, instruction.
        state_names: what the entries of the state mean.
        prompts: the instruction at the beginning of the episode, and at the alarm.
    """
    named = int(at["named"])
    largest = np.where(np.isnan(at["ratios"]), np.inf, at["ratios"]).max(axis=1)
    suspect = named if named < len(inputs) else int(np.argmax(largest))
    kind = ("camera",) * len(at["cells"]) + ("state", "text")
    score = int(np.argmax(at["ratios"][suspect]))
    size = f"{at['ratios'][suspect, score]:.1f} times its 95% limit in clean episodes"
    why = f"{STREAMS[kind[suspect]][score]} {size}, alarm above {float(at['threshold']):.1f}"
    if named == len(inputs):
        return (
            f"None of the inputs: the robot did not go where it was told ({why}), and the cameras "
            "saw it where the state says it is. A push, or an actuator."
        )
    other = [
        (size, name)
        for i, (size, name) in enumerate(zip(largest, inputs, strict=True))
        if i != named
    ]
    size, next_name = max(other)
    why += f"; next {_title(next_name, kind[inputs.index(next_name)])} with {size:.1f}"
    where = _where(at, kind[named], named, state_names, prompts)
    if kind[named] == "state" and at["sides"]:
        where += f"; the cameras agree with the commands, by {at['sides']:.1f} standard deviations"
    return f"Unsound: {_title(inputs[named], kind[named])} ({why}){where}."


def _range(noun: str, indices: np.ndarray) -> str:
    first, last = indices.min() + 1, indices.max() + 1
    return f"{noun} {first}" if first == last else f"{noun}s {first} to {last}"


def _title(name: str, kind: str) -> str:
    return f"camera {name}" if kind == "camera" else f"the {input_name(name)}"


def _where(
    at: Mapping[str, Any],
    kind: str,
    named: int,
    state_names: Sequence[str],
    prompts: tuple[str, str] | None,
) -> str:
    """Within the input: cells of a picture, an entry of the state, words."""
    if kind == "camera":
        cells = at["cells"][named]
        rows, columns = np.nonzero(cells >= max(cells.max() / 2, UNUSUAL))
        if not len(rows):
            return ""
        places = f"{_range('row', rows)}, {_range('column', columns)}"
        return f", most in {len(rows)} of {cells.size} cells: {places}"
    if kind == "state":
        entry = int(np.argmax(np.abs(at["entries"])))
        name = state_names[entry] if entry < len(state_names) else f"entry {entry}"
        return f", most in {name}: {at['entries'][entry]:+.1f} standard deviations from the command"
    if prompts is not None:
        return "".join(f", {change}" for change in changed_words(*prompts))
    places = np.flatnonzero(at["words"]) + 1
    return f", token {', '.join(map(str, places))}" if len(places) else ""


def changed_words(before: str, now: str) -> list[str]:
    """What is different in a prompt, in words."""
    old, new = before.split(), now.split()
    changes = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        gone, came = " ".join(old[a:b]), " ".join(new[c:d])
        if what == "replace":
            changes.append(f"“{came}” in place of “{gone}”")
        elif what == "delete":
            changes.append(f"without “{gone}”")
        elif what == "insert":
            changes.append(f"with “{came}” added")
    return changes
