"""What steering does to the chosen actions, as a function of its strength.

Every strength sees the same observations and the same noise, so effects are paired differences from
strength 0. Their intervals are bootstrapped over observations. A vector matters only as far as it
beats random ones of its own length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from mistjax.policies.protocol import Policy, PolicySpec, RawObs
from mistjax.steer.schedules import is_strength
from mistjax.steer.table import Steering
from mistjax.steer.vectors import SteeringVector

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
    if not len(strengths) or not all(is_strength(strength) for strength in strengths):
        raise ValueError(f"strengths are {list(strengths)}: expected at least one, all finite.")
    obs, keys = policy.prepare(raw), jax.random.split(key, len(raw))
    prefix = policy.prefill(obs) if steering.site.startswith("action.") else None
    spec = policy.spec

    def act(strength: float) -> Float[np.ndarray, "b h a"]:
        edit = steering.to_edit(jnp.float32(strength))
        return policy.finish(policy.sample(obs, keys, edits=(edit,), prefix=prefix), raw)

    ordered = np.unique(np.asarray(strengths, np.float64))
    bare = act(0.0)
    steered = [act(strength) for strength in ordered]
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
