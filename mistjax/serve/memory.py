"""`Memory`: what a policy remembers of the episode of each connection, on its device.

A slot is a connection's. Slots that are asked for together are rows of one batch of arrays,
gathered and put back by a program; the state of one that is asked for alone is kept as it is,
which costs nothing, until it is asked for together with others.
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
"""(slot, episode): another episode than before in the slot begins anew."""


class Memory:
    """See the module.

    Args:
        policy: whose.
        slots: at a time; there is one more, `spare`, for rows that nobody asked for.
        sizes: of batches.
    """

    def __init__(self, policy: Policy, slots: int, sizes: Sequence[int]):
        self.spare = slots
        # A copy of its own, since `_scatter` uses it up.
        self._rows = jax.tree.map(jnp.copy, beside(policy, policy.initial_state(slots + 1)))
        self._fresh = {size: beside(policy, policy.initial_state(size)) for size in sizes}
        self._alone: dict[int, Any] = {}
        self._episodes: dict[int, int] = {}

    def recall(self, asked: Asked, size: int) -> Any:
        """The state of a batch; rows beyond those asked for repeat the first."""
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
        """Puts back what the policy remembers after an inference of what was asked for."""
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
