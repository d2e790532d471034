"""Which input is unsound? Every answer in one form: a `Namer` turns a `Moment` into evidence that
speaks against each input, or against none of them.

`novelty` asks the monitor of the inputs, which knows what clean episodes look like. `by_share` asks
an attribution of what the policy does or of its failure score: which input it relies on is another
question, and `docs/results.md` says how seldom the answer is the unsound one. `Clean` gives any of
them what the monitor has: how large its evidence is on clean episodes, and so a way to say "none".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.batching import compiled
from mistjax.attribute.inputs import Inputs, Regions
from mistjax.attribute.interventional import effects
from mistjax.attribute.readouts import Readout
from mistjax.attribute.registry import ATTRIBUTIONS, attribute
from mistjax.attribute.tokens import ablated
from mistjax.detect.novelty.monitor import InputEvidence, InputMemory, InputMonitor
from mistjax.detect.novelty.reading import TOKENS, read
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy
from mistjax.policies.wrapper import erase_state

NONE = "none"


@flax.struct.dataclass
class Moment:
    """A batch of inferences about which the question is asked.

    Attributes:
        obs: what the policy saw.
        key: of the sampling noise, one per observation.
        readout: what attributions explain, for example a `FailureScore`.
        memory: what the monitor of the inputs remembers of the looks before; None before the
            first one.
    """

    obs: Observation
    key: Array
    readout: Readout
    memory: InputMemory | None = None


@flax.struct.dataclass
class Naming:
    """What speaks against each input: the cameras in the model's order, state, text, none of them.

    Attributes:
        evidence: in units of the method; the largest names.
        where: how much speaks against each part of an input; None where a method does not say.
        inputs: names (static), without the last.
    """

    evidence: Float[Array, "b n"]
    where: Regions | None
    inputs: tuple[str, ...] = flax.struct.field(pytree_node=False)

    @property
    def named(self) -> Int[Array, " b"]:
        """Index of the largest evidence; that of none of the inputs where nothing is positive."""
        anything = self.evidence.max(axis=1) > 0
        return jnp.where(anything, jnp.argmax(self.evidence, axis=1), len(self.inputs))

    def names(self) -> list[str]:
        """One of `inputs` or `NONE` for each batch element."""
        return [(*self.inputs, NONE)[int(i)] for i in np.asarray(self.named)]


Namer = Callable[[Policy, Moment], Naming]


def inputs_of(obs: Observation) -> tuple[str, ...]:
    """The inputs of an observation in the order of `Naming` and of `InputMonitor`."""
    return (*obs.images, "state", "text")


def novelty(monitor: InputMonitor) -> Namer:
    """The monitor of the inputs. Evidence is each input's largest score over the threshold of the
    alarm, so 1 speaks for none of them; what the cross-check clears the state of does too.
    """

    def name(policy: Policy, moment: Moment) -> Naming:
        memory = moment.memory
        if memory is None:
            memory = monitor.initial_state(moment.obs.batch_size)
        sample = policy.sample(moment.obs, moment.key, taps=(TOKENS,))
        seen = read(erase_state(policy, moment.obs), sample.taps[str(TOKENS)])
        _, found = _look(monitor, memory, seen)
        return naming_of(monitor, found)

    return name


_look = jax.jit(lambda monitor, memory, reading: monitor.step(memory, reading))


def naming_of(monitor: InputMonitor, found: InputEvidence) -> Naming:
    """What a monitor found at the looks of a batch, as a `Naming`."""
    ratios = jnp.where(jnp.isnan(found.ratios), jnp.inf, found.ratios).max(axis=2)
    against = ratios / found.threshold[:, None]
    state = len(monitor.cameras)
    cleared = found.named == len(monitor.inputs)
    none = jnp.where(cleared, jnp.maximum(against[:, state], 1.0), 1.0)
    against = against.at[:, state].set(jnp.where(cleared, 0.0, against[:, state]))
    where = Regions(
        images={name: found.cells[:, i] for i, name in enumerate(monitor.cameras)},
        text=found.words.astype(jnp.float32),
        state=jnp.abs(found.entries),
    )
    return Naming(jnp.concatenate([against, none[:, None]], axis=1), where, monitor.inputs)


def by_share(method: str, **options: Any) -> Namer:
    """An attribution's answer: the input with the most of what raises the readout.

    Args:
        method: key of `ATTRIBUTIONS`.
        **options: of the method.
    """

    def name(policy: Policy, moment: Moment) -> Naming:
        found = attribute(method, policy, moment.obs, moment.key, moment.readout, **options)
        return shares(found)

    return name


def shares(found: Attribution) -> Naming:
    """The positive part of an attribution by input; it never speaks for none of them."""
    parts = Regions(found.images, found.text, found.state)
    parts = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x) & (x > 0), x, 0.0), parts)
    leaves = [*parts.images.values(), parts.state, parts.text]
    masses = [leaf.reshape(len(leaf), -1).sum(axis=1) for leaf in leaves]
    evidence = jnp.stack([*masses, jnp.zeros_like(masses[0])], axis=1)
    return Naming(evidence, parts, (*found.images, "state", "text"))


def whole_occlusion(policy: Policy, moment: Moment) -> Naming:
    """How much the readout changes, either way, when a whole input is replaced by its baseline."""
    return _changes(effects, policy, moment)


def whole_ablation(policy: Policy, moment: Moment) -> Naming:
    """The same when the action expert cannot read an input's part of the cache, see
    `cache_ablation`.
    """
    return _changes(ablated, policy, moment)


def _changes(intervene: Callable[..., Array], policy: Policy, moment: Moment) -> Naming:
    regions = _whole_inputs(policy, moment.obs)
    values = intervene(policy, moment.obs, moment.key, moment.readout, regions, patch=policy.patch)
    change = jnp.abs(values[:-1] - values[-1:]).T
    evidence = jnp.concatenate([change, jnp.zeros_like(change[:, :1])], axis=1)
    return Naming(evidence, None, inputs_of(moment.obs))


@compiled
def _whole_inputs(policy: Policy, obs: Observation) -> Regions:
    """Each input as a region of its own, then none: leading axis [n+1]."""
    nothing = Regions.full(Inputs.of(policy, obs), policy.patch, 0.0)
    every = jax.tree.map(jnp.ones_like, nothing)
    rows = [
        dataclasses.replace(nothing, images={**nothing.images, name: every.images[name]})
        for name in obs.images
    ]
    rows += [
        dataclasses.replace(nothing, state=every.state),
        dataclasses.replace(nothing, text=every.text),
        nothing,
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def chance(policy: Policy, moment: Moment) -> Naming:
    """A control without information: evidence is drawn from the moment's key."""
    inputs = inputs_of(moment.obs)
    draw = jax.vmap(lambda key: jax.random.uniform(key, (len(inputs) + 1,)))
    return Naming(draw(moment.key), None, inputs)


NAMERS: Mapping[str, Namer] = {
    **{method: by_share(method) for method in ATTRIBUTIONS if method != "camera_masking"},
    "whole_occlusion": whole_occlusion,
    "whole_ablation": whole_ablation,
    "chance": chance,
}
"""All that need no monitor of the inputs; that one is `novelty(monitor)`. Camera masking is
not among them: it could accuse nothing but a camera."""


@flax.struct.dataclass
class Clean:
    """How large a method's evidence is on clean episodes.

    Attributes:
        scale: of each input: exceeded in 5% of clean moments.
        limit: of the largest scaled evidence: exceeded in a share alpha of clean moments.
    """

    scale: Float[Array, " i"]
    limit: Float[Array, ""]

    @classmethod
    def of(cls, evidence: Float[np.ndarray, "m n"], alpha: float = 0.1) -> Clean:
        """From the evidence of a method at clean moments.

        Raises:
            ValueError: fewer than ten moments, or an alpha outside of (0, 1).
        """
        if len(evidence) < 10 or not 0 < alpha < 1:
            raise ValueError(
                f"{len(evidence)} clean moments and alpha {alpha}: expected at least ten, and a "
                "share between 0 and 1."
            )
        own = np.asarray(evidence, np.float64)[:, :-1]
        scale = np.maximum(np.quantile(own, 0.95, axis=0), 1e-12)
        limit = np.quantile((own / scale).max(axis=1), 1 - alpha)
        return cls(jnp.asarray(scale, jnp.float32), jnp.asarray(limit, jnp.float32))

    def __call__(self, naming: Naming) -> Naming:
        """The evidence in units of clean episodes; none of the inputs where none is above the
        limit.
        """
        scaled = naming.evidence[:, :-1] / self.scale[None]
        none = jnp.broadcast_to(self.limit, (len(scaled), 1))
        return dataclasses.replace(naming, evidence=jnp.concatenate([scaled, none], axis=1))
