"""The remedy of one input: what stands in for it while its sensor is not believed.

A remedy is `(memory, observation, input) -> observation, edits, masks`, in three functions, so that
what is remembered is never the fault itself:

- `note`: what to keep of an observation in which the input is sound. `recover.repaired` decides
  which note is the last good one; a note is a pytree with leading axis B.
- `advance`: that note, one inference later. Dead reckoning moves its state by what was commanded
  and seen; the others keep theirs.
- `propose`: the observation with the input replaced or masked, edits of activations, whether the
  remedy knows what it does, and how far the sensor is from what stands in for it.

All three are traced: a remedy is a pytree of arrays, called inside the compiled program, on all
batch elements. When a remedy acts, and on which input, is decided elsewhere: see
`recover.decision`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from typing_extensions import Protocol, runtime_checkable

from mistjax.hooks.edits import Edit
from mistjax.models.observation import Observation

Look = Callable[[Mapping[str, Array]], Float[Array, "b n d"]]


@flax.struct.dataclass
class Seen:
    """One inference, as the sensors give it or with other inputs already repaired.

    Attributes:
        obs: the observation, with its image embedding.
        command: what was executed since the last inference, in model units; 0 before the first.
        look: the image embedding of other pictures in place of these, by camera: the vision tower
            runs again (static; None where no remedy of pictures can be asked).
        tokens: of each camera, flat, as the monitor of inputs reads them; None where no remedy that
            asks for them can be.
    """

    obs: Observation
    command: Float[Array, "b e a"]
    look: Look | None = flax.struct.field(pytree_node=False, default=None)
    tokens: Float[Array, "b c t"] | None = None


@flax.struct.dataclass
class Proposal:
    """What a remedy proposes.

    Attributes:
        obs: the observation with the input repaired in every batch element; `images` are not read
            again: a remedy of pictures gives their `image_embedding` (`Seen.look`).
        known: whether the remedy is sure enough of itself.
        residual: distance of the sensor from what stands in for it, over the limit that it keeps
            in 95% of clean inferences (by sight, of the median clean episode's): at most 1 where
            the sensor looks sound.
        edits: of activations, with one strength per batch element.
    """

    obs: Observation
    known: Bool[Array, " b"]
    residual: Float[Array, " b"]
    edits: tuple[Edit, ...] = ()


def stand_in(seen: Seen, name: str, picture: Float[Array, "b h w 3"]) -> Observation:
    """The observation with another picture of a camera: its tokens alone change, so that remedies
    of other cameras stay.

    Raises:
        ValueError: `seen` was made without `look`.
    """
    if seen.look is None:
        raise ValueError("a remedy of pictures needs the vision tower: give Seen a `look`.")
    cameras = list(seen.obs.images)
    now = jnp.asarray(seen.obs.image_embedding)
    apart = (len(now), len(cameras), -1, now.shape[-1])
    other = seen.look({name: picture}).reshape(apart)
    camera = cameras.index(name)
    tokens = now.reshape(apart).at[:, camera].set(other[:, camera].astype(now.dtype))
    return dataclasses.replace(seen.obs, image_embedding=tokens.reshape(now.shape))


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
