"""`Redrawn`: where the failure score alarms, the policy draws another chunk; see `recover.redraw`.

The bare chunk is drawn first and scored, so that the monitor goes on to see what the policy does by
itself. The other one is drawn under `lax.cond` from the same prefix, and fused with it within the
cap. Without an alarm the actions are bit for bit those of the policy inside.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mistjax.attribute.readouts import FailureScore
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import PolicySpec, Sample
from mistjax.policies.wrapper import Wrapper
from mistjax.recover.fusion import FusionLimits, fuse
from mistjax.recover.mist import MistPolicy, MistState
from mistjax.recover.redraw import Moment, Redraw


@flax.struct.dataclass
class Redrawn(Wrapper):
    """See the module. `Sample.aux["edited"]` says where another chunk went out.

    Attributes:
        policy: the monitored one, which only watches.
        redraw: how another chunk is drawn.
        limits: how far it may be from the bare one.
        when: at the alarm, or always (static).
        name: for tables (static).
    """

    policy: MistPolicy
    redraw: Redraw
    limits: FusionLimits
    when: Literal["alarm", "always"] = flax.struct.field(pytree_node=False, default="alarm")
    name: str = flax.struct.field(pytree_node=False, default="redrawn")

    @classmethod
    def of(cls, policy: MistPolicy, redraw: Redraw, cap: float, **options: Any) -> Redrawn:
        """With the same share `cap` of every action's range.

        Raises:
            ValueError: the monitored policy has a remedy already, or see `Redraw.check`.
        """
        if policy.remedy is not None:
            raise ValueError("the monitored policy steers already: give one that only watches.")
        monitor = policy.monitor
        start = monitor.detector.init_state(1)
        redraw.check(policy.policy, FailureScore(monitor.detector, start, monitor.reads))
        limits = FusionLimits.of(policy.spec, cap, policy.chunk_width)
        return cls(policy, redraw, limits, **options)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The policy's, with a name and a fingerprint of its own."""
        return self.policy.spec.wrapped(self.name, (self.redraw, self.limits, self.when))

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Any:
        return self.policy.prefill(obs, edits=edits, taps=_every(self, taps))

    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Any = None,
    ) -> Sample:
        """See `Policy.sample`; `state` is `initial_state` or the last sample's."""
        state = self.initial_state(obs.batch_size) if isinstance(state, tuple) else state
        return _sample(self, obs, key, state, tuple(edits), tuple(taps), prefix)


def _every(redrawn: Redrawn, taps: Sequence[Tap]) -> tuple[Tap, ...]:
    """Everything that is tapped."""
    reads = redrawn.policy.monitor.reads.taps
    return tuple(dict.fromkeys((*taps, *reads, *redrawn.redraw.taps)))


@functools.partial(jax.jit, static_argnames="taps")
def _sample(
    redrawn: Redrawn, obs: Observation, key: Array, state: MistState, edits, taps, prefix
) -> Sample:
    mist, every = redrawn.policy, _every(redrawn, taps)
    monitor = mist.monitor
    if prefix is None:
        prefix = mist.prefill(obs, edits=edits, taps=every)
    sample = mist.sample(obs, key, state=state, edits=edits, taps=every, prefix=prefix)
    asked = jnp.ones_like(sample.aux["alarm"]) if redrawn.when == "always" else sample.aux["alarm"]
    asked &= ~sample.aux["fallback"]
    score = FailureScore(monitor.detector, state.monitor.detector, monitor.reads)
    moment = Moment(monitor.watched(mist.policy), obs, key, edits, prefix, sample, score)

    def again(bare):
        chunk, there = redrawn.redraw.draw(moment)
        used = asked & there & jnp.isfinite(chunk).all(axis=(1, 2))
        fused = fuse(bare, chunk, used.astype(jnp.float32), redrawn.limits)
        return jnp.where(used[:, None, None], fused, bare), used

    actions, edited = jax.lax.cond(
        jnp.any(asked), again, lambda bare: (bare, jnp.zeros_like(asked)), sample.actions
    )
    seen = {str(tap): sample.taps[str(tap)] for tap in taps}
    return Sample(actions, seen, {**sample.aux, "edited": edited}, sample.state)
