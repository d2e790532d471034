"""`Hooks`: edits and taps as one value, where they are only passed on."""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap


@flax.struct.dataclass
class Hooks:
    """What to change and what to record in one inference; each stack takes what names it.

    A pytree for jit: edits are arguments of a program, taps are part of it.

    Attributes:
        edits: what to change.
        taps: what to record (static).
    """

    edits: tuple[Edit, ...] = ()
    taps: tuple[Tap, ...] = flax.struct.field(pytree_node=False, default=())

    @classmethod
    def of(cls, edits: Sequence[Edit], taps: Sequence[Tap]) -> Hooks:
        """Any sequences of them."""
        return cls(tuple(edits), tuple(taps))
