"""What a robot executes of its chunks when an inference takes several control steps.

A round begins with an observation and ends with the next: `executed` actions or, where the
inference takes longer, as many as it takes. The inference's chunk is there `delay` actions after
its observation; until then the rest of the chunks before is executed. A strategy says what the
inference is told of that, and how the old and the new chunk become one plan. Chunks and plans are
aligned with the round: entry k is for the k-th action from its observation on; where there is no
entry, the robot holds still.

| name | what it does | source |
|---|---|---|
| `wait` | holds still during the inference | what synchronous clients do |
| `naive` | switches to the new chunk when it is there | ibid. as baseline: arXiv 2506.07339, section 5 |
| `ensemble` | averages what all chunks say of an action, the oldest with the largest weight | ACT, arXiv 2304.13705, section IV-B |
| `rtc`, `rtc_identity`, `rtc_closed` | the sampler is guided by the rest of the old chunk | see `models.inpainting` |
| `vlash` | the state given to the policy is rolled forward by the actions that are pending; its chunk begins there | VLASH, arXiv 2512.01031, there for policies trained on such states; here for any |
| `rail` | a quintic polynomial joins the chunks with continuous position and velocity | VLA-RAIL, arXiv 2512.24673, its fusion of chunks without the smoothing inside of one |
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
    """See the module.

    Attributes:
        name: of `NAMES`.
        delay: actions that an inference takes.
        executed: actions of a round, where the inference is not longer.
        horizon: actions of a chunk.
        decay: of the ensemble's weights exp(-decay * age rank), the oldest first.
        beta: largest guidance weight of RTC.
        blend: actions over which `rail` goes from the old chunk to the new one.

    Raises:
        ValueError: an unknown name, or a number that none can have.
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
        """Actions between two observations."""
        if self.name == "wait":
            return self.delay + self.executed
        return max(self.executed, self.delay, 1)

    @property
    def late(self) -> bool:
        """Whether a chunk begins when it is there, and not at its observation."""
        return self.name in ("wait", "vlash")

    @property
    def reach(self) -> int:
        """Entries of a plan: as far as a chunk lasts."""
        return self.horizon + self.delay * self.late

    @property
    def history(self) -> int:
        """Chunks to remember."""
        return -(-self.horizon // self.round) if self.name == "ensemble" else 1

    def pending(self, old: Float[Array, "b h a"], known: Bool[Array, "b h"]) -> Pending | None:
        """What an RTC sampler is told; None for the other strategies."""
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
        """What is executed from this observation on, and where there is something; p is `reach`.

        Args:
            chunks: the chunks before, the newest first; of `ensemble` as they were sampled, else
                the plan that was made of them.
            known: where they have an entry.
            new: the new chunk.
            sound: whether it is one.
            begun: False in an episode's first round: the robot then stands still until the chunk
                is there, which begins where it stands.
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
        older = jnp.cumsum(said[:, ::-1], axis=1)[:, ::-1]  # rank from the oldest, 1 on
        weight = jnp.where(said, jnp.exp(-self.decay * (older - 1).astype(every.dtype)), 0.0)
        total = weight.sum(axis=1)
        mean = jnp.einsum("bkh,bkha->bha", weight, every) / jnp.maximum(total, 1e-9)[..., None]
        return mean, total > 0

    def _blended(self, old, had, new, there, plan):
        """The plan with a quintic from the old chunk at `delay` - 1 to the new one `blend` on."""
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
    """The polynomial of degree 5 with given positions and velocities at both ends and no
    acceleration there, at shares `s` of its length.

    Args:
        begin, end: position, and velocity in one action.
        s: shares, 0 to 1.
        length: actions from begin to end.
    """
    (p, v), (q, w) = begin, end
    s = jnp.asarray(s)[None, :, None]
    p, q, v, w = (x[:, None] for x in (p, q, v * length, w * length))
    rise = 10 * s**3 - 15 * s**4 + 6 * s**5
    leave = s - 6 * s**3 + 8 * s**4 - 3 * s**5
    arrive = -4 * s**3 + 7 * s**4 - 3 * s**5
    return p + (q - p) * rise + v * leave + w * arrive
