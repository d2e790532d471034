"""`MistPolicy`: detect -> attribute -> steer -> fuse, around any JAX policy, as one jitted program.

Every inference runs the bare policy once and scores it. Only when a row alarms does the program
(under `lax.cond`) ask what the score relies on, look up the edit for that cause, sample again with
it from the same noise, and fuse the two chunks within limits. The prefix is computed once unless an
edit touches it.

What it promises: without an alarm, or with strength 0, the actions are bit for bit those of the
bare policy with the same key; a fused action stays within the cap; the state belongs to one
episode of one row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.inputs import PatchSize, Regions
from mistjax.attribute.localiser import localise
from mistjax.attribute.readouts import FailureScore
from mistjax.attribute.registry import attribute
from mistjax.detect.monitor import Monitor, MonitorState
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap, split_site
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, PolicySpec, Sample
from mistjax.policies.wrapper import Wrapper
from mistjax.recover.fusion import FusionLimits, fuse
from mistjax.steer.schedules import Schedule
from mistjax.steer.table import CauseTable


@flax.struct.dataclass
class Remedy:
    """What to do about an alarm.

    Attributes:
        table: cause -> edit. Causes are the localiser's modalities (each camera, "text", "state").
        schedule: strength by inferences since the alarm. Once it is 0, the next alarm begins anew.
        limits: how far a fused action may be from the original one.
        weight: share of the steered chunk in the fused one.
        method: name of the attribution that finds the cause (static).
        patch: pixels (height, width) of an attributed region (static).
    """

    table: CauseTable
    schedule: Schedule
    limits: FusionLimits
    weight: Float[Array, ""] | float = 1.0
    method: str = flax.struct.field(pytree_node=False, default="gradient_x_input")
    patch: PatchSize = flax.struct.field(pytree_node=False, default=(16, 16))

    def rows(self, modalities: Sequence[str]) -> Int[Array, " m"]:
        """Row of the table for each modality; -1 for one that the table leaves out."""
        causes = self.table.causes
        return jnp.array([causes.index(m) if m in causes else -1 for m in modalities])


@flax.struct.dataclass
class MistState:
    """Of each row's episode: the monitor's memory, and when and why the remedy began.

    Attributes:
        monitor: see `MonitorState`.
        since: inferences since the alarm that began the remedy; -1 while there is none.
        cause: row of the steering table in use; -1 for none.
    """

    monitor: MonitorState
    since: Int[Array, " b"]
    cause: Int[Array, " b"]


@flax.struct.dataclass
class MistPolicy(Wrapper):
    """A policy with a monitor and, where `remedy` is given, a remedy; itself a `Policy`.

    `objective` is the bare policy's: a remedy is a decision, and has no gradient.

    `Sample.aux` holds of each row the monitor's `score`, `threshold` and `alarm`, whether the
    chunk was `edited`, the `cause` (row of the steering table, -1 for none) and, at an alarm that
    begins a remedy, the attribution of the score as `why/<camera>`, `why/text` and `why/state`
    (else 0).

    Attributes:
        policy: the bare policy, a pytree.
        monitor: what watches it.
        remedy: what to do about an alarm; None only watches.
        name: for tables (static).
    """

    policy: Policy
    monitor: Monitor
    remedy: Remedy | None = None
    name: str = flax.struct.field(pytree_node=False, default="mist")

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The bare policy's, with a name and a fingerprint of its own."""
        return self.policy.spec.wrapped(self.name, (self.monitor, self.remedy))

    def initial_state(self, batch: int) -> MistState:
        none = jnp.full(batch, -1)
        return MistState(self.monitor.initial_state(batch), none, none)

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Any:
        return self.policy.prefill(obs, edits=edits, taps=_union(taps, self.monitor.features.taps))

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
        """See `Policy.sample`; `state` is `initial_state` or the last sample's. `edits` are made in
        every pass, on top of the remedy's own."""
        state = self.initial_state(obs.batch_size) if isinstance(state, tuple) else state
        return _sample(self, obs, key, state, tuple(edits), tuple(taps), prefix)


def _union(taps: Sequence[Tap], more: Sequence[Tap]) -> tuple[Tap, ...]:
    return tuple(dict.fromkeys((*taps, *more)))


@functools.partial(jax.jit, static_argnames="taps")
def _sample(
    mist: MistPolicy, obs: Observation, key: Array, state: MistState, edits, taps, prefix
) -> Sample:
    policy, remedy = mist.policy, mist.remedy
    every = _union(taps, mist.monitor.features.taps)
    if prefix is None:
        prefix = policy.prefill(obs, edits=edits, taps=every)
    plain = policy.sample(obs, key, edits=edits, taps=every, prefix=prefix)
    monitor, reading = mist.monitor.step(state.monitor, plain)
    aux = {
        **plain.aux,
        "score": reading.score,
        "threshold": reading.threshold,
        "alarm": reading.alarm,
    }
    seen = {str(tap): plain.taps[str(tap)] for tap in taps}
    if remedy is None:
        state = MistState(monitor, state.since, state.cause)
        aux["edited"] = jnp.zeros_like(reading.alarm)
        return Sample(plain.actions, seen, aux, state)

    running = remedy.schedule.at(state.since + 1) * (state.since >= 0) > 0
    begins = reading.alarm & ~running
    since = jnp.where(begins, 0, jnp.where(running, state.since + 1, -1))
    cause, why = _find_cause(mist, obs, key, state, begins)
    cause = jnp.where(since >= 0, cause, -1)
    edit = remedy.table.select(cause, remedy.schedule.at(since))
    steered = jnp.asarray(edit.strength) != 0
    actions = _repair(mist, obs, key, (*edits, edit), prefix, plain.actions, steered)
    aux |= {"edited": steered, "cause": cause}
    aux |= {f"why/{name}": grid for name, grid in why.images.items()}
    aux |= {"why/text": why.text, "why/state": why.state}
    return Sample(actions, seen, aux, MistState(monitor, since, cause))


def _find_cause(
    mist: MistPolicy, obs: Observation, key: Array, state: MistState, begins: Bool[Array, " b"]
) -> tuple[Int[Array, " b"], Regions]:
    """(row of the table, attribution) where a remedy begins; the other rows keep their cause."""
    remedy, monitor = mist.remedy, mist.monitor
    assert remedy is not None
    readout = FailureScore(monitor.detector, state.monitor.detector, monitor.features)

    def parts(found: Attribution) -> Regions:
        return Regions(found.images, found.text, found.state)

    def explain(obs):
        return attribute(remedy.method, mist.policy, obs, key, readout, patch=remedy.patch)

    def ask(obs):
        found = explain(obs)
        cause = localise(found)
        row = jnp.where(cause.found, remedy.rows(cause.modalities)[cause.modality], -1)
        return jnp.where(begins, row, state.cause), _where(begins, parts(found))

    def keep(obs):
        shapes = jax.eval_shape(lambda o: parts(explain(o)), obs)
        return state.cause, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    return jax.lax.cond(jnp.any(begins), ask, keep, obs)


def _where(rows: Bool[Array, " b"], tree: Any) -> Any:
    """The tree in those rows, 0 elsewhere."""
    return jax.tree.map(lambda x: jnp.where(rows.reshape(-1, *(1,) * (x.ndim - 1)), x, 0), tree)


def _repair(
    mist: MistPolicy, obs, key, edits, prefix, original, steered: Bool[Array, " b"]
) -> Float[Array, "b h a"]:
    """The chunk fused with the one under edits, in the `steered` rows."""
    remedy = mist.remedy
    assert remedy is not None
    shared = prefix if split_site(remedy.table.site)[0] == "action" else None

    def fused(original):
        chunk = mist.policy.sample(obs, key, edits=edits, prefix=shared).actions
        weight = jnp.where(steered, remedy.weight, 0.0)
        chunk = fuse(original, chunk, weight, remedy.limits)
        return jnp.where(steered[:, None, None], chunk, original)

    return jax.lax.cond(jnp.any(steered), fused, lambda original: original, original)
