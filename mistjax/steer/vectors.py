"""Steering vectors, neuron overwrites, and the ways to make them.

A `SteeringVector` is a unit direction per layer with its natural scale, so that strength 1 means
something: it is what the maker saw in the weights or in recorded activations. `to_edit` turns it
into the `Edit` that a policy takes.

Source: value vectors: Häon et al., arXiv 2509.00328. Difference of means: Turner et al., arXiv
2308.10248; Rimsky et al., arXiv 2312.06681.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.hooks.edits import Add, SetNeurons
from mistjax.hooks.sites import Tap, resolve_layers
from mistjax.policies.protocol import PolicySpec
from mistjax.policies.value_vectors import ValueVectors
from mistjax.steer.concepts import Concept
from mistjax.steer.schedules import is_strength

Strength = Float[Array, "..."] | float
Towards = Float[Array | np.ndarray, "n l d"]
Away = Float[Array | np.ndarray, "m l d"]
"""One mean activation per example and tapped layer, of the two groups."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a vector comes from.

    Attributes:
        policy: fingerprint of the policy it was made with.
        maker: the function that made it.
        details: JSON values: words, groups, counts.
    """

    policy: str
    maker: str
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


def _static():
    return flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class SteeringVector:
    """A direction per layer.

    Pass `to_edit(...)` into compiled functions, not the vector: provenance is static.

    Attributes:
        direction: unit length, 0 in layers without one [L,D].
        scale: length at strength 1 [L].
        gate: weight of each layer [L].
        site: where it is added, `<stack>.<point>`.
        tokens: a token selector.
        provenance: where it comes from.
    """

    direction: Float[Array, "l d"]
    scale: Float[Array, " l"]
    gate: Float[Array, " l"]
    site: str = _static()
    tokens: str = _static()
    provenance: Provenance = _static()

    @property
    def vector(self) -> Float[Array, "l d"]:
        """What strength 1 adds, before the gate."""
        return self.direction * self.scale[:, None]

    def to_edit(
        self, strength: Strength = 1.0, step_weights: Float[Array, " s"] | None = None
    ) -> Add:
        """Adds `strength` times the vector; a negative strength steers away from it."""
        return Add(
            site=self.site,
            tokens=self.tokens,
            strength=jnp.asarray(strength, jnp.float32),
            gate=self.gate,
            step_weights=step_weights,
            vector=self.vector,
        )

    def control(self, key: Array) -> SteeringVector:
        """A random direction of the same length in every layer: what steering does by size
        alone.
        """
        noise = jax.random.normal(key, self.direction.shape, jnp.float32)
        unit = noise / jnp.linalg.norm(noise, axis=-1, keepdims=True)
        details = {"control_of": dataclasses.asdict(self.provenance)}
        return self.replace(  # type: ignore[attr-defined]
            direction=jnp.where(self.scale[:, None] > 0, unit, 0.0),
            provenance=Provenance(self.provenance.policy, "control", details),
        )

    def at_layers(self, *layers: int) -> SteeringVector:
        """The same vector in these layers only."""
        return self.replace(gate=_gate(layers, len(self.scale)))  # type: ignore[attr-defined]


@flax.struct.dataclass
class NeuronOverwrite:
    """Neurons and the activation that they are moved to: strength 1 overwrites, 0 leaves alone.

    Attributes:
        mask: 1 for the neurons, else 0 [L,F].
        value: their new activation [L,F].
        gate: weight of each layer [L].
        site: `<stack>.mlp_neurons`.
        tokens: a token selector.
        provenance: where it comes from.
    """

    mask: Float[Array, "l f"]
    value: Float[Array, "l f"]
    gate: Float[Array, " l"]
    site: str = _static()
    tokens: str = _static()
    provenance: Provenance = _static()

    def to_edit(
        self, strength: Strength = 1.0, step_weights: Float[Array, " s"] | None = None
    ) -> SetNeurons:
        """Moves the neurons by `strength` of the way to their value."""
        return SetNeurons(
            site=self.site,
            tokens=self.tokens,
            strength=jnp.asarray(strength, jnp.float32),
            gate=self.gate,
            step_weights=step_weights,
            mask=self.mask,
            value=self.value,
        )


def _gate(layers: Sequence[int], depth: int) -> Float[Array, " l"]:
    chosen = jnp.array(resolve_layers(tuple(layers), depth), int)
    return jnp.zeros(depth, jnp.float32).at[chosen].set(1.0)


def _make(site: str, tokens: str, provenance: Provenance, vector: Array) -> SteeringVector:
    """A steering vector with unit directions; ValueError when it is 0 or not finite everywhere."""
    scale = jnp.linalg.norm(vector, axis=-1)
    if not bool(jnp.all(jnp.isfinite(scale))) or not bool(jnp.any(scale > 0)):
        raise ValueError(
            f"{provenance.maker} gave a vector of length {np.asarray(scale)} per layer: expected "
            "finite numbers, not all 0; the two sides must differ."
        )
    direction = vector / jnp.where(scale > 0, scale, 1.0)[:, None]
    return SteeringVector(
        direction, scale, (scale > 0).astype(jnp.float32), site, tokens, provenance
    )


def concept_vector(
    values: ValueVectors, concept: Concept, *, against: Concept | None = None, tokens: str = "all"
) -> SteeringVector:
    """The mean value vector of a concept's neurons in each layer, added to the FFN's output.

    Strength s does what raising the activation of each of the concept's neurons by s would do, and
    lowering those of `against` by s.
    """
    total = _total(values, concept)
    details: dict[str, Any] = {"concept": concept.name, "neurons": len(concept)}
    if against is not None:
        total = total - _total(values, against)
        details |= {"against": against.name, "against_neurons": len(against)}
    provenance = Provenance(values.policy, "concept_vector", details)
    return _make(f"{values.stack}.mlp_out", tokens, provenance, total)


def _total(values: ValueVectors, concept: Concept) -> Float[Array, "l d"]:
    """Sum of the concept's value vectors in each layer."""
    _check_stack(values, concept)
    depth, _, width = values.vectors.shape
    chosen = values.vectors[concept.layers, concept.neurons].astype(jnp.float32)
    return jnp.zeros((depth, width), jnp.float32).at[concept.layers].add(chosen)


def _check_stack(values: ValueVectors, concept: Concept) -> None:
    if concept.stack != values.stack:
        raise ValueError(
            f"concept {concept.name!r} is of the {concept.stack!r} stack, the value vectors are of "
            f"{values.stack!r}: search the concept in the same stack."
        )


def overwrite_concept(
    values: ValueVectors, concept: Concept, activation: float, *, tokens: str = "all"
) -> NeuronOverwrite:
    """The intervention of Häon et al.: the concept's neurons are set to one activation.

    Raises:
        ValueError: a concept of another stack, or an activation that is not finite.
    """
    _check_stack(values, concept)
    if not is_strength(activation):
        raise ValueError(f"activation is {activation!r}: expected a finite number.")
    depth, neurons, _ = values.vectors.shape
    mask = jnp.zeros((depth, neurons), jnp.float32).at[concept.layers, concept.neurons].set(1.0)
    details = {"concept": concept.name, "neurons": len(concept), "activation": activation}
    provenance = Provenance(values.policy, "overwrite_concept", details)
    site = f"{values.stack}.mlp_neurons"
    gate = jnp.max(mask, axis=1)
    return NeuronOverwrite(mask, mask * activation, gate, site, tokens, provenance)


def difference_of_means(
    towards: Towards, away: Away, tap: Tap, spec: PolicySpec, **details: Any
) -> SteeringVector:
    """Mean of one group minus mean of another; strength 1 carries one mean to the other.

    Args:
        towards: activations of the group to steer to, at the tap's layers.
        away: of the group to steer away from.
        tap: where they were read; the vector is added there.
        spec: of the policy they were read from.
        **details: JSON values for the provenance: what the groups are.

    Raises:
        ValueError: groups that do not fit the tap, or do not differ.
    """
    _check_groups(towards, away, tap, spec)
    towards, away = (jnp.asarray(group, jnp.float32) for group in (towards, away))
    vector = jnp.mean(towards, 0) - jnp.mean(away, 0)
    details |= {"towards": len(towards), "away": len(away)}
    return _at_tap("difference_of_means", vector, tap, spec, details)


def _check_groups(towards, away, tap: Tap, spec: PolicySpec) -> None:
    layers = len(resolve_layers(tap.layers, spec.stacks[tap.stack].depth))
    width = spec.stacks[tap.stack].width
    if not len(towards) or not len(away):
        raise ValueError(f"groups of {len(towards)} and {len(away)} examples: both need some.")
    if towards.shape[1:] != (layers, width) or away.shape[1:] != (layers, width):
        raise ValueError(
            f"groups of shape {towards.shape} and {away.shape}: expected [examples, {layers}, "
            f"{width}] for {tap}."
        )


def _at_tap(maker: str, vector: Array, tap: Tap, spec: PolicySpec, details) -> SteeringVector:
    depth = spec.stacks[tap.stack].depth
    layers = jnp.array(resolve_layers(tap.layers, depth))
    full = (
        jnp.zeros((depth, vector.shape[-1]), jnp.float32).at[layers].set(vector.astype(jnp.float32))
    )
    provenance = Provenance(spec.fingerprint, maker, {**details, "tap": str(tap)})
    return _make(tap.site, tap.tokens, provenance, full)
