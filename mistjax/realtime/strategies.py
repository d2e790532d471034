"""Strategies of asynchronous execution: which actions a robot executes while an inference runs.

A round lasts from one observation to the next: `executed` actions, or `delay` where the inference
takes longer. The chunk inferred from an observation arrives `delay` actions after it; until then
the rest of the earlier chunks is executed. A strategy decides what the inference is told about
those pending actions, and how the old and the new chunk merge into one plan. Chunks and plans are
aligned with the round: entry k is the k-th action after its observation. Where a plan has no entry,
the robot holds still.

| name | what it does | source |
|---|---|---|
| `wait` | holds still during the inference | synchronous execution |
| `naive` | switches to the new chunk as soon as it arrives | a baseline in arXiv 2506.07339, section 5 |
| `ensemble` | averages the predictions of all chunks for an action, the oldest weighted most (temporal ensembling) | ACT, arXiv 2304.13705, section IV-B |
| `rtc`, `rtc_identity`, `rtc_closed` | guides the sampler towards the rest of the old chunk (real-time chunking) | see `models.inpainting` |
| `vlash` | gives the policy the state rolled forward by the pending actions; its chunk starts there | VLASH, arXiv 2512.01031, which trains policies on such states; here for any policy |
| `rail` | joins the chunks by a quintic with continuous position and velocity | VLA-RAIL, arXiv 2512.24673: its fusion of chunks, not its smoothing within one |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mistjax.models.inpainting import BETA, Pending, soft_weights

NAMES = ("wait", "naive", "ensemble", "rtc", "rtc_identity", "rtc_closed", "vlash", "rail")
_VARIANTS = {"rtc": "jacobian", "rtc_identity": "identity", "rtc_closed": "closed"}


@dataclasses.dataclass(frozen=True)
class Strategy:
    """See the module docstring. All lengths are numbers of actions (control steps).

    Attributes:
        name: one of `NAMES`.
        delay: how long an inference takes.
        executed: length of a round, unless the delay is longer.
        horizon: length of a chunk.
        decay: m in the ensemble's weights exp(-m * i), i = 0 for the oldest chunk.
        beta: upper limit of RTC's guidance weight.
        blend: length of `rail`'s transition from the old chunk to the new one.

    Raises:
        ValueError: an unknown name, or a length out of range.
    """

    name: str
    delay: int
    executed: int
    horizon: int
    decay: float = 0.01
    beta: float = BETA
    blend: int = 3

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(
                f"no strategy is called {self.name!r}: expected one of {', '.join(NAMES)}."
            )
        if not 0 <= self.delay <= 1000 or not 1 <= self.executed <= self.horizon:
            raise ValueError(
                f"delay is {self.delay}, executed {self.executed} of {self.horizon}: expected a "
                "delay from 0 to 1000 and at least one action of a chunk."
            )

    @property
    def round(self) -> int:
        """Actions from one observation to the next."""
        if self.name == "wait":
            return self.delay + self.executed
        return max(self.executed, self.delay, 1)

    @property
    def late(self) -> bool:
        """Whether a chunk's first action is for when it arrives, not for its observation."""
        return self.name in ("wait", "vlash")

    @property
    def reach(self) -> int:
        """Entries of a plan: how far a chunk reaches beyond its observation."""
        return self.horizon + self.delay * self.late

    @property
    def history(self) -> int:
        """How many earlier chunks are remembered."""
        return -(-self.horizon // self.round) if self.name == "ensemble" else 1

    def pending(self, old: Float[Array, "b h a"], known: Bool[Array, "b h"]) -> Pending | None:
        """What guides an RTC sampler; None for the other strategies.

        Args:
            old: the current plan, in model units.
            known: which of its entries hold an action.
        """
        if self.name not in _VARIANTS:
            return None
        weight = soft_weights(self.delay, self.round, self.horizon)
        beta = jnp.full(len(old), self.beta, jnp.float32)
        variant: Any = _VARIANTS[self.name]
        return Pending(old, jnp.where(known, weight, 0.0), beta, variant)

    def plan(
        self,
        chunks: Float[Array, "b k p a"],
        known: Bool[Array, "b k p"],
        new: Float[Array, "b h a"],
        sound: Bool[Array, " b"],
        begun: Bool[Array, " b"],
    ) -> tuple[Float[Array, "b p a"], Bool[Array, "b p"]]:
        """(plan from this observation on, which of its entries hold an action); P is `reach`.

        Args:
            chunks: earlier chunks, newest first: for `ensemble` as they were sampled, otherwise
                the plan merged from them.
            known: which of their entries hold an action.
            new: the new chunk.
            sound: whether it is an action at all.
            begun: False in the first round of an episode, in which the robot holds still until the
                chunk arrives, and executes it from its first action.
        """
        steps = jnp.arange(self.reach)[None]
        shift = jnp.where(begun & (not self.late), 0, self.delay)[:, None]
        taken = steps - shift
        there = (taken >= 0) & (steps >= self.delay) & sound[:, None]
        moved = jnp.take_along_axis(new, jnp.maximum(taken, 0)[..., None], axis=1)
        if self.name == "wait":
            return moved, there
        if self.name == "ensemble":
            return self._averaged(chunks, known, moved, there)
        old, had = chunks[:, 0], known[:, 0]
        plan = jnp.where(there[..., None], moved, old)
        if self.name == "rail":
            plan = self._blended(old, had, moved, there, plan)
        return plan, there | (had & (steps < self.delay))

    def _averaged(self, chunks, known, new, there):
        every = jnp.concatenate([new[:, None], chunks], axis=1)
        said = jnp.concatenate([there[:, None], known], axis=1)
        older = jnp.cumsum(said[:, ::-1], axis=1)[:, ::-1]  # rank, 1 for the oldest
        weight = jnp.where(said, jnp.exp(-self.decay * (older - 1).astype(every.dtype)), 0.0)
        total = weight.sum(axis=1)
        mean = jnp.einsum("bkh,bkha->bha", weight, every) / jnp.maximum(total, 1e-9)[..., None]
        return mean, total > 0

    def _blended(self, old, had, new, there, plan):
        """The plan with a quintic from the old chunk's entry `delay` - 1 to the new chunk's,
        `blend` entries later."""
        first, last = self.delay - 1, self.delay - 1 + self.blend
        if first < 1 or last + 1 >= self.horizon:
            return plan
        begin = old[:, first], old[:, first] - old[:, first - 1]
        end = new[:, last], (new[:, last + 1] - new[:, last - 1]) / 2
        s = jnp.arange(1, self.blend, dtype=jnp.float32) / self.blend
        joined = quintic(begin, end, s, self.blend)
        right = (had[:, first] & had[:, first - 1] & there[:, last + 1])[:, None, None]
        now = plan[:, first + 1 : last]
        return plan.at[:, first + 1 : last].set(jnp.where(right, joined, now))


def quintic(
    begin: tuple[Float[Array, "b a"], Float[Array, "b a"]],
    end: tuple[Float[Array, "b a"], Float[Array, "b a"]],
    s: Float[Array | np.ndarray, " n"],
    length: float,
) -> Float[Array, "b n a"]:
    """The polynomial of degree 5 with the given positions and velocities at both ends and zero
    acceleration there.

    Args:
        begin, end: (position, velocity per action).
        s: where to evaluate it, from 0 (begin) to 1 (end).
        length: actions from begin to end.
    """
    (p, v), (q, w) = begin, end
    s = jnp.asarray(s)[None, :, None]
    p, q, v, w = (x[:, None] for x in (p, q, v * length, w * length))
    rise = 10 * s**3 - 15 * s**4 + 6 * s**5
    leave = s - 6 * s**3 + 8 * s**4 - 3 * s**5
    arrive = -4 * s**3 + 7 * s**4 - 3 * s**5
    return p + (q - p) * rise + v * leave + w * arrive
