"""`Memory`: a policy's state for the episode of every connection, on the policy's device.

Every connection has a slot. The states of slots in one batch are rows of arrays, gathered and
scattered by a compiled program. The state of a slot that was inferred alone is kept as it came,
at no cost, until the slot is part of a larger batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mistjax.batches import choose
from mistjax.policies.protocol import Policy
from mistjax.rollouts.loop import beside

Asked = Sequence[tuple[int, int]]
"""(slot, episode) of each request: a new episode in a slot starts from the initial state."""


class Memory:
    """See the module docstring.

    Attributes:
        spare: a slot of no connection, for the rows of a batch that are padding.

    Args:
        policy: whose state it is.
        slots: most connections at a time.
        sizes: batch sizes.
    """

    def __init__(self, policy: Policy, slots: int, sizes: Sequence[int]):
        self.spare = slots
        # A copy, since `_scatter` donates it.
        self._rows = jax.tree.map(jnp.copy, beside(policy, policy.initial_state(slots + 1)))
        self._fresh = {size: beside(policy, policy.initial_state(size)) for size in sizes}
        self._alone: dict[int, Any] = {}
        self._episodes: dict[int, int] = {}

    def recall(self, asked: Asked, size: int) -> Any:
        """The state of a batch of `size`; padding repeats the first row."""
        fresh = [self._episodes.get(slot) != episode for slot, episode in asked]
        if size == 1 and fresh[0]:
            return self._fresh[1]
        if size == 1 and asked[0][0] in self._alone:
            return self._alone[asked[0][0]]
        for (slot, _), new in zip(asked, fresh, strict=True):
            alone = self._alone.pop(slot, None)
            if alone is not None and not new:
                self._rows = _scatter(self._rows, np.array([slot], np.int32), alone)
        rows = [*range(len(asked)), *[0] * (size - len(asked))]
        slots = np.array([asked[i][0] for i in rows], np.int32)
        return _gather(self._rows, slots, np.array(fresh)[rows], self._fresh[size])

    def keep(self, asked: Asked, size: int, state: Any) -> None:
        """Stores the state that an inference of these requests returned."""
        if size == 1:
            self._alone[asked[0][0]] = state
        else:
            slots = [slot for slot, _ in asked] + [self.spare] * (size - len(asked))
            self._rows = _scatter(self._rows, np.array(slots, np.int32), state)
        self._episodes |= dict(asked)


@jax.jit
def _gather(rows: Any, slots: Any, fresh: Any, first: Any) -> Any:
    return choose(fresh, first, jax.tree.map(lambda leaf: leaf[slots], rows))


@functools.partial(jax.jit, donate_argnums=0)
def _scatter(rows: Any, slots: Any, new: Any) -> Any:
    return jax.tree.map(lambda leaf, row: leaf.at[slots].set(row), rows, new)
