"""`MistPolicy`: detect -> attribute -> steer -> fuse, around any JAX policy, as one jitted program.

Every inference runs the bare policy once and scores it. Only at an alarm does the program
(under `lax.cond`) ask what the score relies on, look up the edit for that cause, sample again with
it from the same noise, and fuse the two chunks within limits. The prefix is computed once unless an
edit touches it.

What it promises: without an alarm, or with strength 0, the actions are bit for bit those of the
bare policy with the same key; a fused action stays within the cap; the state belongs to one
episode of one batch element.

Fail-safe: where an observation, the bare chunk or the score is not finite, or the chunk's tokens
do not stand for an action, there is nothing to repair: that batch element alarms and holds still
(`RobotPreset.fallback`) for this chunk, and the detector remembers nothing of it. Where
only the steered chunk is not an action, the bare one goes out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mistjax.attribute.inputs import PatchSize, Regions
from mistjax.attribute.localiser import localise
from mistjax.attribute.readouts import FailureScore
from mistjax.attribute.registry import attribute
from mistjax.batches import choose
from mistjax.detect.monitor import Monitor, MonitorState
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap, split_site
from mistjax.models.draws import element_keys
from mistjax.models.observation import Observation
from mistjax.models.transforms import flat_batch
from mistjax.policies.protocol import Policy, PolicySpec, RawObs, Sample
from mistjax.policies.wrapper import Wrapper
from mistjax.recover.fusion import FusionLimits, fuse
from mistjax.recover.gate import ActionGate
from mistjax.steer.schedules import Schedule
from mistjax.steer.table import CauseTable


@flax.struct.dataclass
class Remedy:
    """What to do about an alarm.

    Attributes:
        table: cause -> edit. Causes are the localiser's modalities (each camera, "text", "state").
        schedule: strength by inferences since the alarm. Once it is 0, the next alarm begins anew.
            So it does after an alarm of which no cause in the table was found.
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
    """Of each element's episode: the monitor's memory, and when and why the remedy began.

    Attributes:
        monitor: see `MonitorState`.
        since: inferences since the alarm that began the remedy; -1 while there is none.
        cause: row of the steering table in use; -1 for none.
        plan: the last chunk, where a gate compares the next one with it; else ().
    """

    monitor: MonitorState
    since: Int[Array, " b"]
    cause: Int[Array, " b"]
    plan: Any = ()


@flax.struct.dataclass
class MistPolicy(Wrapper):
    """A policy with a monitor and, where `remedy` is given, a remedy; itself a `Policy`.

    `objective` is the bare policy's: a remedy is a decision, and has no gradient.

    `Sample.aux` holds of each element the monitor's `score`, `threshold` and `alarm`, whether the
    `fallback` goes out (the actions are then 0 until `finish` makes them the robot's), whether the
    chunk was `edited`, the `cause` (row of the steering table, -1 for none) and, at an alarm that
    begins a remedy, the attribution of the score as `why/<camera>`, `why/text` and `why/state`
    (else 0); with a remedy, `attributed` says whether it was asked for.

    Attributes:
        policy: the bare policy, a pytree.
        monitor: what watches it.
        remedy: what to do about an alarm; None only watches.
        name: for tables (static).
        gate: an alarm that would begin a remedy while it is closed is not explained, and begins
            none; None explains each.
    """

    policy: Policy
    monitor: Monitor
    remedy: Remedy | None = None
    name: str = flax.struct.field(pytree_node=False, default="mist")
    gate: ActionGate | None = None

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The bare policy's, with a name and a fingerprint of its own."""
        gate = () if self.gate is None else (self.gate,)
        return self.policy.spec.wrapped(self.name, (self.monitor, self.remedy, *gate))

    def initial_state(self, batch: int) -> MistState:
        none = jnp.full(batch, -1, jnp.int32)
        plan = () if self.gate is None else self.gate.start(self.spec.action_horizon, batch)[0]
        return MistState(self.monitor.initial_state(batch), none, none, plan)

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Any:
        return self.policy.prefill(obs, edits=edits, taps=_union(taps, self.monitor.reads.taps))

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

    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        """See `Policy.finish`; holds still where `sample.aux["fallback"]` says so."""
        actions = self.policy.finish(sample, raw)
        if "fallback" not in sample.aux:
            return actions
        held = np.asarray(sample.aux["fallback"])
        return self.preset.bounded(actions, held, flat_batch(raw))


def _union(taps: Sequence[Tap], more: Sequence[Tap]) -> tuple[Tap, ...]:
    return tuple(dict.fromkeys((*taps, *more)))


@functools.partial(jax.jit, static_argnames="taps")
def _sample(
    mist: MistPolicy, obs: Observation, key: Array, state: MistState, edits, taps, prefix
) -> Sample:
    policy, remedy = mist.monitor.watched(mist.policy), mist.remedy
    every = _union(taps, mist.monitor.reads.taps)
    if prefix is None:
        prefix = policy.prefill(obs, edits=edits, taps=every)
    plain = policy.sample(obs, key, edits=edits, taps=every, prefix=prefix)
    monitor, reading = mist.monitor.step(state.monitor, plain)
    lost = jnp.asarray(plain.broken) | ~jnp.isfinite(reading.score) | ~_is_finite(obs)
    kept = choose(~lost, monitor.detector, state.monitor.detector)
    monitor = monitor.replace(detector=kept)  # type: ignore[attr-defined]
    original = jnp.where(lost[:, None, None], 0.0, plain.actions)
    aux = {
        **plain.aux,
        "score": reading.score,
        "threshold": reading.threshold,
        "alarm": reading.alarm | lost,
        "fallback": lost,
    }
    seen = {str(tap): plain.taps[str(tap)] for tap in taps}
    if remedy is None:
        aux["edited"] = jnp.zeros_like(lost)
        return Sample(original, seen, aux, state.replace(monitor=monitor))  # type: ignore[attr-defined]

    running = (state.since >= 0) & (remedy.schedule.at(state.since + 1) > 0)
    begins = reading.alarm & ~running & ~lost
    if mist.gate is not None:
        begins &= mist.gate.next(original, state.plan)[1]
    cause, why = _find_cause(mist, obs, key, state, begins)
    since = jnp.where(running, state.since + 1, jnp.where(begins & (cause >= 0), 0, -1))
    cause = jnp.where(since >= 0, cause, -1)
    edit = remedy.table.select(cause, remedy.schedule.at(since))
    steered = (jnp.asarray(edit.strength) != 0) & ~lost
    actions, edited = _repair(mist, obs, key, (*edits, edit), prefix, original, steered)
    aux |= {"edited": edited, "cause": cause, "attributed": begins}
    aux |= {f"why/{name}": grid for name, grid in why.images.items()}
    aux |= {"why/text": why.text, "why/state": why.state}
    plan = () if mist.gate is None else actions
    return Sample(actions, seen, aux, MistState(monitor, since, cause, plan))


def _is_finite(obs: Observation) -> Bool[Array, " b"]:
    """Batch elements of which every picture and number is finite."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(obs)]
    rows = [
        jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
        for leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(rows), axis=0)


def _find_cause(
    mist: MistPolicy, obs: Observation, key: Array, state: MistState, begins: Bool[Array, " b"]
) -> tuple[Int[Array, " b"], Regions]:
    """(row of the table, attribution) where a remedy begins; the others keep their cause.

    One element of the batch at a time, since an attribution costs many inferences and few begin.
    """
    remedy, monitor = mist.remedy, mist.monitor
    assert remedy is not None
    policy = monitor.watched(mist.policy)

    def explain(obs, key, memory):
        readout = FailureScore(monitor.detector, memory, monitor.reads)
        return attribute(remedy.method, policy, obs, key, readout, patch=remedy.patch)

    def ask(obs, key, memory, _):
        found = explain(obs, key, memory)
        cause = localise(found)
        row = jnp.where(cause.found, remedy.rows(cause.modalities)[cause.modality], -1)
        return row, Regions(found.images, found.text, found.state)

    def keep(obs, key, memory, row):
        _, why = jax.eval_shape(ask, obs, key, memory, row)
        return row, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), why)

    def one(element):
        begun, *rest = element
        alone = jax.tree.map(lambda x: x[None], rest)
        return jax.tree.map(lambda x: x[0], jax.lax.cond(begun, ask, keep, *alone))

    rest = (obs, element_keys(key, obs.batch_size), state.monitor.detector, state.cause)
    return jax.lax.cond(
        jnp.any(begins), lambda: jax.lax.map(one, (begins, *rest)), lambda: keep(*rest)
    )


def _repair(
    mist: MistPolicy, obs, key, edits, prefix, original, steered: Bool[Array, " b"]
) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
    """(the chunk, fused with the one under edits where that is an action; where it was), in the
    `steered` batch elements.
    """
    remedy = mist.remedy
    assert remedy is not None
    shared = prefix if split_site(remedy.table.site)[0] == "action" else None

    def fused(original):
        sample = mist.policy.sample(obs, key, edits=edits, prefix=shared)
        edited = steered & ~sample.broken
        weight = jnp.where(edited, jnp.asarray(remedy.weight, jnp.float32), 0.0)
        chunk = fuse(original, sample.actions, weight, remedy.limits)
        return jnp.where(edited[:, None, None], chunk, original), edited

    def as_it_is(original):
        return original, jnp.zeros_like(steered)

    return jax.lax.cond(jnp.any(steered), fused, as_it_is, original)
