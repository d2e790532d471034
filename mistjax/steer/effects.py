"""What steering does to the chosen actions, as a function of its strength.

Every strength sees the same observations and the same noise, so effects are paired differences from
strength 0. Their intervals are bootstrapped over observations. A vector matters only as far as it
beats random ones of its own length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy, PolicySpec, RawObs
from mistjax.policies.value_vectors import ValueVectors
from mistjax.steer.concepts import Concept, control_neurons
from mistjax.steer.groups import observation_group
from mistjax.steer.schedules import is_strength
from mistjax.steer.table import Steering
from mistjax.steer.vectors import SteeringVector, concept_vector, overwrite_concept

Way = Literal["overwrite", "add"]
WAYS: tuple[Way, ...] = ("overwrite", "add")
"""Set a concept's neurons to one activation, as Häon et al. do; or raise each of them by it."""

_TRANSLATION = ("dx", "dy", "dz")


def action_statistics(
    actions: Float[np.ndarray, "b h a"], spec: PolicySpec
) -> dict[str, Float[np.ndarray, " b"]]:
    """Mean of each action dimension over the chunk's executed steps, and `speed`: mean |dxyz|.

    Only policies with actions dx, dy, dz have a speed.
    """
    executed = actions[:, : spec.execute_steps]
    means = {name: executed[..., i].mean(1) for i, name in enumerate(spec.action_names)}
    if set(_TRANSLATION) <= set(spec.action_names):
        moves = executed[..., [spec.action_names.index(name) for name in _TRANSLATION]]
        means["speed"] = np.linalg.norm(moves, axis=-1).mean(1)
    return means


@dataclasses.dataclass(frozen=True, eq=False)
class DoseResponse:
    """Action statistics over strengths.

    Attributes:
        strengths: ascending [S].
        statistics: statistic -> change from strength 0 of each observation [S,B].
        baseline: statistic -> value at strength 0 [B].
        moved: mean |action - action at strength 0| over the executed steps and dimensions [S,B].
    """

    strengths: Float[np.ndarray, " s"]
    statistics: dict[str, Float[np.ndarray, "s b"]]
    baseline: dict[str, Float[np.ndarray, " b"]]
    moved: Float[np.ndarray, "s b"]

    def effect(self, statistic: str) -> Float[np.ndarray, " s"]:
        """Mean change; ValueError for an unknown statistic."""
        if statistic not in self.statistics:
            raise ValueError(f"no statistic {statistic!r}: there are {sorted(self.statistics)}.")
        return self.statistics[statistic].mean(1)

    def interval(
        self, statistic: str, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> Float[np.ndarray, "s 2"]:
        """Percentile bootstrap interval of the mean change over observations."""
        change = self.statistics[statistic]
        count = change.shape[1]
        rows = np.random.default_rng(seed).integers(count, size=(resamples, count))
        means = change[:, rows].mean(-1)
        return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1).T

    def monotonicity(self, statistic: str) -> float:
        """Spearman correlation of strength and mean change; 0 when nothing changes."""
        effect = self.effect(statistic)
        if np.ptp(effect) == 0:
            return 0.0
        return float(np.corrcoef(stats.rankdata(self.strengths), stats.rankdata(effect))[0, 1])


def dose_response(
    policy: Policy,
    raw: Sequence[RawObs],
    steering: Steering,
    strengths: Sequence[float],
    key: Array,
) -> DoseResponse:
    """Measures a direction on a batch of observations; one compile for all strengths.

    Args:
        policy: the policy.
        raw: observations; each gets its own noise, the same at every strength.
        steering: what to measure.
        strengths: distinct, in any order.
        key: one PRNG key.

    Raises:
        ValueError: no strength, or one that is not finite.
    """
    return _measure(policy, raw, lambda at: steering.to_edit(jnp.float32(at)), strengths, key)


def _measure(
    policy: Policy,
    raw: Sequence[RawObs],
    edit_at: Callable[[float], Edit],
    strengths: Sequence[float],
    key: Array,
) -> DoseResponse:
    """The response to edits of one kind; what they leave alone at coefficient 0 is the baseline."""
    if not len(strengths) or not all(is_strength(strength) for strength in strengths):
        raise ValueError(f"strengths are {list(strengths)}: expected at least one, all finite.")
    obs, keys = policy.prepare(raw), jax.random.split(key, len(raw))
    none = edit_at(0.0).replace(strength=jnp.float32(0))  # type: ignore[attr-defined]
    prefix = policy.prefill(obs) if none.stack == "action" else None
    spec = policy.spec

    def act(edit: Edit) -> Float[np.ndarray, "b h a"]:
        return policy.finish(policy.sample(obs, keys, edits=(edit,), prefix=prefix), raw)

    ordered = np.unique(np.asarray(strengths, np.float64))
    bare = act(none)
    steered = [act(edit_at(float(strength))) for strength in ordered]
    baseline = action_statistics(bare, spec)
    found = [action_statistics(actions, spec) for actions in steered]
    changes = {n: np.stack([each[n] - baseline[n] for each in found]) for n in baseline}
    moved = np.stack([np.abs(a - bare)[:, : spec.execute_steps].mean((1, 2)) for a in steered])
    return DoseResponse(ordered, changes, baseline, moved)


def control_responses(
    policy: Policy,
    raw: Sequence[RawObs],
    vector: SteeringVector,
    strengths: Sequence[float],
    key: Array,
    *,
    controls: int = 8,
) -> list[DoseResponse]:
    """The same measurement for random vectors of the same length, on the same noise.

    Raises:
        ValueError: no controls, or as `dose_response`.
    """
    if controls < 1:
        raise ValueError(f"controls is {controls}: expected at least 1.")
    keys = jax.random.split(jax.random.fold_in(key, 1), controls)
    return [dose_response(policy, raw, vector.control(k), strengths, key) for k in keys]


@dataclasses.dataclass(frozen=True, eq=False)
class NeuronEffect:
    """What a concept's neurons do to the actions, beside as many random ones.

    Attributes:
        concept: which neurons.
        way: what was done to them.
        unit: the activation that is dose 1.
        response: strengths are doses.
        controls: of random neurons of the same layers and norms, see `control_neurons`.
    """

    concept: Concept
    way: Way
    unit: float
    response: DoseResponse
    controls: tuple[DoseResponse, ...]

    def span(self, statistic: str) -> float:
        """Change from the lowest dose to the highest."""
        return _span(self.response, statistic)

    def z(self, statistic: str) -> float:
        """The span in units of the controls' root mean square span; 0 where nothing changes."""
        chance = np.sqrt(np.mean([_span(c, statistic) ** 2 for c in self.controls]))
        return self.span(statistic) / float(chance) if chance > 0 else 0.0

    def p_value(self, statistic: str) -> float:
        """Of a span as large as this among random neurons' spans: Student's t with as many degrees
        of freedom as controls.
        """
        return float(2 * stats.t.sf(abs(self.z(statistic)), len(self.controls)))


def _span(response: DoseResponse, statistic: str) -> float:
    effect = response.effect(statistic)
    return float(effect[-1] - effect[0])


def activation_unit(
    policy: Policy, raw: Sequence[RawObs], stack: str, key: Array, *, quantile: float = 0.99
) -> float:
    """The activation that this share of a stack's neurons stay below, each at its highest token of
    an observation.
    """
    peaks = observation_group(policy, raw, Tap(f"{stack}.mlp_neurons", None, "all", "max"), key)
    return float(np.quantile(peaks, quantile))


def neuron_effect(
    policy: Policy,
    raw: Sequence[RawObs],
    values: ValueVectors,
    concept: Concept,
    doses: Sequence[float],
    key: Array,
    *,
    way: Way = "overwrite",
    unit: float = 1.0,
    controls: int = 8,
) -> NeuronEffect:
    """Measures a concept's neurons and random ones; one compile for all of a stack's.

    Cost: (controls + 1) (doses + 1) inferences of the observations.

    Args:
        policy: the policy.
        raw: observations; each gets its own noise, the same in every measurement.
        values: value vectors of the concept's stack.
        concept: which neurons.
        doses: activations in units of `unit`.
        key: one PRNG key.
        way: of `WAYS`.
        unit: see `activation_unit`.
        controls: sets of random neurons.

    Raises:
        ValueError: no controls, fewer than two doses, doses or a unit that are not finite, or a
            concept that is more than half of a layer.
    """
    if controls < 1 or len(set(doses)) < 2:
        raise ValueError(
            f"{controls} controls and doses {list(doses)}: expected at least 1 and 2 different "
            "doses."
        )

    def measured(neurons: Concept) -> DoseResponse:
        if way == "add":
            vector = concept_vector(values, neurons)
            return dose_response(policy, raw, vector, [dose * unit for dose in doses], key)
        return _measure(
            policy,
            raw,
            lambda dose: overwrite_concept(values, neurons, dose * unit).to_edit(),
            doses,
            key,
        )

    random = [control_neurons(values, concept, seed) for seed in range(controls)]
    return NeuronEffect(
        concept, way, unit, measured(concept), tuple(measured(neurons) for neurons in random)
    )
