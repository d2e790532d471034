"""Two groups of recorded activations to take a steering vector from.

An example is one mean activation per layer: over an episode's inferences, so that long failures do
not outweigh short successes, and over flow steps where the tap has them.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Policy, RawObs
from mistjax.rollouts.run import Run

Group = Float[np.ndarray, "_ l d"]


def outcome_groups(run: Run, tap: Tap, *, first: int | None = None) -> tuple[Group, Group]:
    """Mean activations of the run's successes and of its failures.

    Args:
        run: recorded with `tap`.
        tap: a reduced tap.
        first: use only this many inferences from an episode's start. Failures last longer than
            successes, so that means over whole episodes also differ by how late they are.

    Raises:
        ValueError: the tap was not recorded, `first` is below 1, or all episodes ended the same
            way.
    """
    _check_reduced(tap)
    if first is not None and first < 1:
        raise ValueError(f"first is {first}: expected at least 1 inference, or None for all.")
    features = run.features(tap)
    values, mask = features.values[:, :first], features.mask[:, :first]
    values = _mean_over_steps(values, tap, axis=2)
    weight = mask[..., None, None]
    means = np.sum(values * weight, axis=1) / np.maximum(weight.sum(1), 1)
    means, success = means.astype(np.float32), features.success
    if success.all() or not success.any():
        raise ValueError(
            f"all {len(success)} episodes {'succeeded' if success.all() else 'failed'}: a steering "
            "vector from outcomes needs both."
        )
    return means[success], means[~success]


def observation_group(
    policy: Policy, raw: Sequence[RawObs], tap: Tap, key: Array, *, batch: int = 64
) -> Group:
    """Activations on given observations, one example each.

    For two prompts over the same scenes, call it once for each with the same key.

    Args:
        policy: the policy.
        raw: raw observations; the last batch is filled up with its first ones, to compile once.
        tap: a reduced tap.
        key: one PRNG key; observation i gets the same noise in every call.
        batch: observations at a time.

    Raises:
        ValueError: no observations, or a batch below 1.
    """
    _check_reduced(tap)
    if not len(raw) or batch < 1:
        raise ValueError(f"{len(raw)} observations, {batch} at a time: expected at least one.")
    keys = jax.random.split(key, len(raw))
    batch = min(batch, len(raw))
    parts = []
    for start in range(0, len(raw), batch):
        rows = np.arange(start, start + batch) % len(raw)
        obs = policy.prepare([raw[int(i)] for i in rows])
        values = np.asarray(policy.sample(obs, keys[rows], taps=(tap,)).taps[str(tap)])
        values = _mean_over_steps(values, tap, axis=0)
        parts.append(np.swapaxes(values, 0, 1))
    return np.concatenate(parts)[: len(raw)].astype(np.float32)


def _check_reduced(tap: Tap) -> None:
    if tap.reduce is None:
        raise ValueError(f"{tap} keeps its tokens: use a tap with reduce='mean' or 'max'.")


def _mean_over_steps(values: np.ndarray, tap: Tap, axis: int) -> np.ndarray:
    """Only taps inside the sampler have an axis of flow steps."""
    return values.mean(axis) if tap.stack == "action" else values
