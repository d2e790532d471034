"""The remedy of one input: what stands in for it while its sensor is not believed.

A remedy is `(memory, observation, input) -> observation, edits, masks`, in three functions, so that
what is remembered is never the fault itself:

- `note`: what to keep of an observation in which the input is sound. `recover.repaired` decides
  which note is the last good one; a note is a pytree with leading axis B.
- `advance`: that note, one inference later. Dead reckoning moves its state by what was commanded;
  the others keep theirs.
- `propose`: the observation with the input replaced or masked, edits of activations, whether the
  remedy knows what it does, and how far the sensor is from what stands in for it.

All three are traced: a remedy is a pytree of arrays, called inside the compiled program, on all
batch elements. When a remedy acts, and on which input, is decided elsewhere: see
`recover.decision`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Float
from typing_extensions import Protocol, runtime_checkable

from mistjax.hooks.edits import Edit
from mistjax.models.observation import Observation


@flax.struct.dataclass
class Seen:
    """One inference, as the sensors give it or with other inputs already repaired.

    Attributes:
        obs: the observation, with its image embedding.
        command: what was executed since the last inference, in model units; 0 before the first.
    """

    obs: Observation
    command: Float[Array, "b e a"]


@flax.struct.dataclass
class Proposal:
    """What a remedy proposes.

    Attributes:
        obs: the observation with the input repaired in every batch element; `images` are not read
            again.
        known: whether the remedy is sure enough of itself.
        residual: distance of the sensor from what stands in for it, over the limit that it keeps
            in 95% of clean inferences: at most 1 where the sensor looks sound.
        edits: of activations, with one strength per batch element.
    """

    obs: Observation
    known: Bool[Array, " b"]
    residual: Float[Array, " b"]
    edits: tuple[Edit, ...] = ()


@runtime_checkable
class InputRemedy(Protocol):
    """See the module; `name` is an input as `InputMonitor.inputs` has it."""

    def blank(self, batch: int) -> Any:
        """A note that says nothing."""
        ...

    def note(self, seen: Seen, name: str) -> Any: ...

    def advance(self, note: Any, seen: Seen) -> Any: ...

    def propose(self, note: Any, seen: Seen, name: str) -> Proposal: ...


Remedies = Mapping[str, InputRemedy]
"""Input -> what is done about it; an input without is left alone."""
