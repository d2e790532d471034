"""`Repaired`: a policy whose unsound inputs are named and repaired before it acts.

One jitted program per inference: the vision tower runs once; the monitor of inputs reads its tokens
and the sensors; a `Decision` says which inputs are to be repaired; the remedy of each makes another
observation of it (under `lax.cond`); the policy inside acts on that. Nothing is computed twice, so
an alarm costs the remedies alone; without one, what they remember is brought up to date.

What it promises: where nothing is repaired, the actions are bit for bit those of the policy inside
with the same key, whatever happens in other batch elements. With a cap below 1 the bare chunk is
drawn as well, and the repaired one stays within the cap of it; with a cap of 1 that holds for
whatever the robot can do, and the bare chunk is not drawn. The monitor sees the sensors, never what
stands in for them. A repair ends: see `recover.recovery`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mistjax.batches import choose
from mistjax.detect.novelty.monitor import InputEvidence, InputMemory
from mistjax.detect.novelty.reading import TOKENS, read
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.draws import categorical, element_keys, normal
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, PolicySpec, Sample
from mistjax.policies.wrapper import erase_state, seeing, with_words
from mistjax.recover.decision import DECISIONS, Decision, begins
from mistjax.recover.fusion import FusionLimits, fuse
from mistjax.recover.gate import ActionGate
from mistjax.recover.mist import MistPolicy
from mistjax.recover.recovery import CALM, RepairMemory, by_input, recovered, remember, start
from mistjax.recover.watched import Watched, report
from mistjax.steer.remedies.artifact import RepairConfig
from mistjax.steer.remedies.mask import Mask
from mistjax.steer.remedies.remedy import Look, Remedies, Seen


@flax.struct.dataclass
class RepairedState:
    """Of the policy inside, of its inputs, and of their repair; with a gate also the last chunk,
    and whether it changed an action that was planned.
    """

    policy: Any
    inputs: InputMemory
    repair: RepairMemory
    plan: Any = ()
    changed: Any = ()


@flax.struct.dataclass
class Repaired(Watched):
    """See the module; itself a `Policy`.

    `Sample.aux` also holds of each element, with one column per input, `repaired` (whether the
    policy acted on something other than the sensor), `repairing` (whether it would have, had the
    remedy known), `remembered` (whether what it is repaired from was replaced) and `residual` (see
    `Proposal`; 0 where nothing is repaired); `edited` says whether any input was repaired, or the
    policy inside edited.

    Attributes:
        remedies: input -> remedy, by the monitor's names.
        limits: how far a repaired action may be from the bare one.
        config: how far and how long to repair (static).
        decision: when, and of which inputs (static).
        name: for tables (static).
        gate: a look while it is closed is not remembered; None remembers each that is calm.
    """

    remedies: Remedies = flax.struct.field(default_factory=dict)
    limits: FusionLimits = None  # type: ignore[assignment]
    config: RepairConfig = flax.struct.field(pytree_node=False, default=RepairConfig())
    decision: Decision = flax.struct.field(pytree_node=False, default=DECISIONS["mist"])
    name: str = flax.struct.field(pytree_node=False, default="mist")
    gate: ActionGate | None = None

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The policy's, with a fingerprint of its own."""
        parts = (self.remedies, self.limits, self.config, self.decision)
        parts += () if self.gate is None else (self.gate,)
        return Watched(self.policy, self.inputs).spec.wrapped(self.name, parts)

    @property
    def reports(self) -> tuple[str, ...]:
        return (*Watched(self.policy, self.inputs).reports, "repaired", "residual")

    def initial_state(self, batch: int) -> RepairedState:
        return RepairedState(
            self.policy.initial_state(batch),
            self.inputs.initial_state(batch),
            start(self.remedies, self.inputs.inputs, batch),
            *(() if self.gate is None else self.gate.start(self.spec.action_horizon, batch)),
        )

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> None:
        """None: what the policy reads is decided with the state of the episode."""
        return None

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
        """See `Policy.sample`; `state` is `initial_state` or the last sample's. `prefix` is not
        used."""
        state = self.initial_state(obs.batch_size) if isinstance(state, tuple) else state
        return _sample(self, obs, key, state, tuple(edits), tuple(taps))


def looking(policy: Policy, obs: Observation, edits: Sequence[Edit] = ()) -> Look:
    """What the policy's vision tower makes of other pictures in place of an observation's."""

    def look(pictures: Mapping[str, Array]) -> Array:
        other = dataclasses.replace(obs, images={**obs.images, **pictures}, image_embedding=None)
        return jnp.asarray(seeing(policy).embed_images(other, edits=edits)[0].image_embedding)

    return look


@functools.partial(jax.jit, static_argnames="taps")
def _sample(mist: Repaired, obs, key, state: RepairedState, edits, taps) -> Sample:
    eyes = tuple(dict.fromkeys((*(tap for tap in taps if tap.stack == "vision"), TOKENS)))
    before = [edit for edit in edits if edit.stack == "vision"]
    edits = tuple(edit for edit in edits if edit.stack != "vision")
    obs, seen = seeing(mist.policy).embed_images(obs, edits=before, taps=eyes)
    looks = state.inputs.looks
    words = erase_state(mist.policy, obs)
    command = jnp.where((looks > 0)[:, None, None], state.inputs.command, 0.0)
    reading = read(words, seen[str(TOKENS)])
    sight = Seen(words, command, looking(mist.policy, obs, before), reading.flat)
    inputs, evidence = mist.inputs.step(state.inputs, reading, state.repair.active)
    worth = jnp.ones(len(looks), bool) if mist.gate is None else state.changed
    memory, remembered = _decided(mist, state.repair, evidence, sight, looks, worth)
    done, acts, residual, changes = _proposed(mist, memory, sight)
    if mist.decision.effect == "random":
        done = _random_like(mist, words, done, key)
    if words is not obs:
        told = acts[:, len(mist.inputs.cameras) :].any(axis=1)  # state or text
        done = with_words(mist.policy, obs, done, told)
    later = tuple(tap for tap in taps if tap.stack != "vision")
    sample = _acted(mist, obs, done, acts, key, state.policy, edits, changes, later)
    active = memory.active
    memory = (
        recovered(memory, residual, mist.config.patience, mist.config.budget)
        if mist.decision.ends
        else dataclasses.replace(memory, spent=memory.spent + active.astype(jnp.int32))
    )
    aux = {
        **sample.aux,
        **report(evidence),
        "edited": jnp.any(acts, axis=1) | sample.aux.get("edited", False),
        "repaired": acts,
        "repairing": active,
        "remembered": remembered,
        "residual": residual,
    }
    inputs = mist.inputs.executed(inputs, sample.actions)
    found = {**seen, **sample.taps}
    gated = () if mist.gate is None else mist.gate.next(sample.actions, state.plan)
    return Sample(
        sample.actions,
        {str(tap): found[str(tap)] for tap in taps},
        aux,
        RepairedState(sample.state, inputs, memory, *gated),
    )


def _decided(
    mist: Repaired,
    memory: RepairMemory,
    evidence: InputEvidence,
    seen: Seen,
    looks: Array,
    worth: Array,
) -> tuple[RepairMemory, Array]:
    """(the memory with what is to be repaired now, and what may be remembered of this look; what
    was remembered).
    """
    names = mist.inputs.inputs
    alarmed = memory.alarmed | evidence.unsound
    begun = begins(mist.decision, names, evidence, alarmed, looks, memory.script)
    begun &= memory.spent < mist.config.budget
    memory = dataclasses.replace(memory, active=memory.active | begun, alarmed=alarmed)
    limit = jnp.where(looks == 0, 1.0, CALM) * evidence.threshold
    calm = evidence.ratios.max(-1) <= limit[:, None]
    return remember(mist.remedies, names, memory, seen, calm, looks, worth)


def _proposed(mist: Repaired, memory: RepairMemory, seen: Seen):
    """(observation with the repaired inputs, which these are, residuals, edits of activations);
    nothing is computed unless something is to be repaired.

    State and text come first, so that an imputed camera goes by a repaired state.
    """
    names, batch = mist.inputs.inputs, len(memory.alarmed)
    order = sorted(memory.notes, key=lambda name: name in mist.inputs.cameras)
    light = dataclasses.replace(seen.obs, images={})
    if isinstance(mist.remedies.get("state"), Mask) and light.state_mask is None:
        light = dataclasses.replace(light, state_mask=jnp.ones(batch, bool))

    def ask(light):
        acts, away, edits = {}, {}, []
        for name in order:
            active, notes = memory.active[:, names.index(name)], memory.notes[name]
            whole = dataclasses.replace(light, images=seen.obs.images)
            found = mist.remedies[name].propose(
                notes.good, dataclasses.replace(seen, obs=whole), name
            )
            on = active & notes.known & found.known
            if mist.decision.effect == "none":
                on = jnp.zeros_like(on)
            acts[name], away[name] = on, jnp.where(active, found.residual, 0.0)
            light = choose(on, dataclasses.replace(found.obs, images={}), light)
            edits += [
                dataclasses.replace(e, strength=e.strength * on.astype(jnp.float32))
                for e in found.edits
            ]
        columns = by_input(acts, names, batch, False), by_input(away, names, batch, 0.0)
        return light, *columns, tuple(edits)

    def skip(light):
        _, *rest = jax.eval_shape(ask, light)
        return light, *jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), rest)

    light, acts, away, edits = jax.lax.cond(jnp.any(memory.active), ask, skip, light)
    return dataclasses.replace(light, images=seen.obs.images), acts, away, edits


def _random_like(mist: Repaired, obs: Observation, done: Observation, key: Array) -> Observation:
    """Changes of the same size as the repair's, at the same places, in random directions."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
        element_keys(key, obs.batch_size), 0x5EED
    )

    def moved(now: Any, then: Any) -> Array:
        now = jnp.asarray(now)
        change = (then - now).reshape(len(now), -1)
        noise = jax.vmap(lambda k: normal(k, change.shape[1:]))(keys)
        noise = jnp.where(change != 0, noise, 0.0)
        size = jnp.linalg.norm(change, axis=1) / jnp.maximum(jnp.linalg.norm(noise, axis=1), 1e-12)
        return now + (size[:, None] * noise).reshape(now.shape).astype(now.dtype)

    words = jnp.asarray(obs.tokenized_prompt)
    logits = jnp.where(mist.inputs.vocabulary, 0.0, -jnp.inf).at[0].set(-jnp.inf)
    other = jax.vmap(
        lambda k: jax.vmap(categorical, in_axes=(0, None))(
            jax.random.split(k, words.shape[1]), logits
        )
    )(keys)
    return dataclasses.replace(
        obs,
        image_embedding=moved(obs.image_embedding, done.image_embedding),
        state=moved(obs.state, done.state),
        tokenized_prompt=jnp.where(words != done.tokenized_prompt, other, words),
    )


def _acted(mist: Repaired, obs, done, acts, key, state, edits, changes, taps) -> Sample:
    """What the policy inside does, on the repaired observation, within the cap."""
    if mist.config.cap >= 1:  # the limits are those of the robot
        return mist.policy.sample(done, key, state=state, edits=(*edits, *changes), taps=taps)
    bare = mist.policy.policy if isinstance(mist.policy, MistPolicy) else mist.policy
    sample = mist.policy.sample(obs, key, state=state, edits=edits, taps=taps)

    def fused(original: Array) -> Array:
        repaired = bare.sample(done, key, edits=(*edits, *changes))
        weight = (jnp.any(acts, axis=1) & ~repaired.broken).astype(jnp.float32)
        chunk = fuse(original, repaired.actions, weight, mist.limits)
        return jnp.where(weight[:, None, None] > 0, chunk, original)

    actions = jax.lax.cond(jnp.any(acts), fused, lambda original: original, sample.actions)
    return dataclasses.replace(sample, actions=actions)
