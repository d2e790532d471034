"""The state machine of a repair, one for each input of each batch element; it ends.

    sound --begins--> repaired --agrees `patience` times, or over budget--> sound

What is remembered of an input is a look at which its own scores were calm, and the one after it
too: a fault that is noticed late must not become the memory that it is repaired from. While an
input is repaired nothing of it is remembered; nor is, with a gate, a look that changed no action.
The monitor goes on to see the sensors, never what stands in for them, so a repair is not evidence
that a sensor is sound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mistjax.batches import choose
from mistjax.recover.decision import Script
from mistjax.steer.remedies.remedy import Remedies, Seen

CALM = 0.6
"""Share of the alarm's threshold that an input's own scores stay below, to be remembered."""


@flax.struct.dataclass
class Notes:
    """What one remedy remembers of its input.

    Attributes:
        good: the note that it repairs from.
        newest: of the last calm inference; good as soon as the next one is calm too.
        known: whether there is a good one.
        waiting: whether `newest` is one.
    """

    good: Any
    newest: Any
    known: Bool[Array, " b"]
    waiting: Bool[Array, " b"]


@flax.struct.dataclass
class RepairMemory:
    """Of each element's episode.

    Attributes:
        notes: of each input that has a remedy.
        active: which inputs are being repaired.
        agreeing: consecutive inferences in which the sensor agreed with what stands in for it.
        spent: inferences in which the input was being repaired.
        alarmed: whether the monitor has alarmed.
        script: see `Script`.
    """

    notes: dict[str, Notes]
    active: Bool[Array, "b i"]
    agreeing: Int[Array, "b i"]
    spent: Int[Array, "b i"]
    alarmed: Bool[Array, " b"]
    script: Script


def start(remedies: Remedies, inputs: tuple[str, ...], batch: int) -> RepairMemory:
    """Before the first inference.

    Args:
        remedies: of the inputs.
        inputs: names, in the monitor's order.
        batch: elements of the batch.
    """
    count = (batch, len(inputs))
    no = jnp.zeros(batch, bool)
    blank = {name: remedies[name].blank(batch) for name in inputs if name in remedies}
    return RepairMemory(
        notes={name: Notes(note, note, no, no) for name, note in blank.items()},
        active=jnp.zeros(count, bool),
        agreeing=jnp.zeros(count, jnp.int32),
        spent=jnp.zeros(count, jnp.int32),
        alarmed=no,
        script=Script.none(batch),
    )


def remember(
    remedies: Remedies,
    inputs: tuple[str, ...],
    memory: RepairMemory,
    seen: Seen,
    calm: Bool[Array, "b i"],
    looks: Int[Array, " b"],
    worth: Bool[Array, " b"],
) -> tuple[RepairMemory, Bool[Array, "b i"]]:
    """(the notes after this look: advanced to it, and the newest calm one taken in; which were).

    Args:
        remedies, inputs: see `start`.
        memory: with the inputs that are being repaired now.
        seen: the sensors.
        calm: whether each input's scores are low.
        looks: inferences before this one.
        worth: whether the look before is worth remembering.
    """
    notes, taken = {}, {}
    for place, name in enumerate(inputs):
        if name not in remedies:
            continue
        remedy, old = remedies[name], memory.notes[name]
        good, newest = remedy.advance(old.good, seen), remedy.advance(old.newest, seen)
        now = remedy.note(seen, name)
        fine = calm[:, place] & ~memory.active[:, place]
        first = fine & (looks == 0)
        later = fine & old.waiting & worth
        good = choose(later, newest, choose(first, now, good))
        taken[name] = first | later
        notes[name] = Notes(good, choose(fine, now, newest), old.known | taken[name], fine)
    return dataclasses.replace(memory, notes=notes), by_input(taken, inputs, len(looks), False)


def recovered(
    memory: RepairMemory, residual: Float[Array, "b i"], patience: int, budget: int
) -> RepairMemory:
    """Ends the repairs whose sensor agrees again, and those over budget.

    Args:
        memory: of this look.
        residual: of each input's remedy, where it is being repaired.
        patience, budget: see `RepairConfig`.
    """
    agreeing = jnp.where(memory.active & (residual <= 1), memory.agreeing + 1, 0)
    spent = memory.spent + memory.active.astype(jnp.int32)
    over = (agreeing >= patience) | (spent >= budget)
    return dataclasses.replace(
        memory,
        active=memory.active & ~over,
        agreeing=jnp.where(over, 0, agreeing),
        spent=spent,
    )


def by_input(values: Mapping[str, Array], inputs: tuple[str, ...], batch: int, empty: Any) -> Array:
    """One column per input, [B,I]; `empty` for an input without a value."""
    return jnp.stack([values.get(name, jnp.full(batch, empty)) for name in inputs], axis=1)
