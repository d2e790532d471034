"""What would have changed: replace regions by the baseline, run again, compare.

`effects` is the one sweep. Occlusion replaces one region at a time; the interventional significance
score (ISS) replaces many at random and so also sees regions that stand in for each other; the
nuisance mass ratio (NMR) says which share of any attribution lies where it should not matter.

Source: Zeiler and Fergus, arXiv 1311.2901 (occlusion). ISS and NMR: Zhang et al., arXiv 2605.00321,
who mask at random, blur what is masked and compare actions. Regression on random masks: Ribeiro et
al., arXiv 1602.04938 (LIME).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mistjax.attribute.attribution import Attribution, evaluate
from mistjax.attribute.batching import check_shares, compiled, in_chunks
from mistjax.attribute.inputs import (
    Baseline,
    Inputs,
    PatchSize,
    Regions,
    each_region,
    per_element,
    replaced,
)
from mistjax.attribute.readouts import Readout
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy


def effects(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    regions: Regions,
    *,
    patch: PatchSize,
    baseline: Baseline = Baseline(),
    chunk: int = 8,
) -> Float[Array, "n b"]:
    """The readout after each of n interventions. Cost: n inferences of the batch.

    Args:
        policy: the policy.
        obs: a batch.
        key: of the sampling noise, the same in every run.
        readout: what is measured.
        regions: what to replace, every leaf with a leading axis [n]: `images[camera]` [n,r,gy,gx].
        patch: pixels (height, width) of one patch.
        baseline: what to put there.
        chunk: interventions in memory at a time, each the whole batch.

    Raises:
        ValueError: regions of other sizes than the observation's, or outside of [0, 1].
    """
    check_shares("regions", regions)
    options = {"patch": patch, "baseline": baseline, "chunk": chunk}
    return _effects(policy, obs, key, readout, regions, **options)


@compiled
def _effects(policy, obs, key, readout, regions, *, patch, baseline, chunk):
    inputs = Inputs.of(policy, obs)
    whole = Regions.full(inputs, patch)
    for given, one in zip(jax.tree.leaves(regions), jax.tree.leaves(whole), strict=True):
        if given.shape[1] not in (1, obs.batch_size) or given.shape[2:] != one.shape[1:]:
            raise ValueError(
                f"a region has shape {given.shape}: expected [n, 1 or {obs.batch_size}, "
                f"{', '.join(map(str, one.shape[1:]))}] for patches of {patch} pixels."
            )
    start = baseline.inputs(policy, obs, inputs)

    def run(region):
        return evaluate(policy, obs, key, readout, replaced(inputs, start, region, patch))

    return in_chunks(run, regions, chunk)


@compiled
def occlusion(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize,
    baseline: Baseline = Baseline(),
    chunk: int = 8,
) -> Attribution:
    """Readout minus the readout with one patch, word or state dimension replaced.

    Arguments as for `effects`. Cost: one inference of the batch per region (pi0: 848).
    """
    unravel, size = each_region(policy, obs, patch)
    masks = jnp.eye(size + 2, size, dtype=jnp.float32).at[size + 1].set(1.0)
    values = effects(
        policy,
        obs,
        key,
        readout,
        jax.vmap(unravel)(masks),
        patch=patch,
        baseline=baseline,
        chunk=chunk,
    )
    changes, value, start = values[size, None] - values[:size], values[size], values[size + 1]
    return Attribution.signed(per_element(unravel, changes.T), value, start, patch)


@compiled
def iss(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize,
    baseline: Baseline = Baseline(),
    chunk: int = 8,
    samples: int = 100,
    probability: float = 0.3,
    seed: int = 0,
) -> Attribution:
    """The interventional significance score as published: with r the absolute change of the readout
    in a sample and m = 0 where a region was replaced, the mean over samples of r (1 - m).

    In each sample every region is replaced on its own with `probability`, under the same sampling
    noise. A region that never matters scores `probability` times the mean of r, not 0, since
    whatever else was replaced counts as its own; `iss_regression` takes that off.

    With `ActionChange(actions of the same observation)` as readout, r is the action error.

    Args:
        policy, obs, key, readout, patch, baseline, chunk: as for `effects`.
        samples: random masks, each one inference of the batch.
        probability: of a region to be replaced.
        seed: of the masks.

    Raises:
        ValueError: fewer than 2 samples, or a probability outside (0, 1).
    """
    drawn = _Drawn.of(policy, obs, patch, samples, probability, seed)
    change, value, start = drawn.changes(
        policy, obs, key, readout, patch=patch, baseline=baseline, chunk=chunk
    )
    scores = change.T @ drawn.replaced / samples
    return Attribution.unsigned(per_element(drawn.unravel, scores), value, start, patch)


@compiled
def iss_regression(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize,
    baseline: Baseline = Baseline(),
    chunk: int = 8,
    samples: int = 256,
    probability: float = 0.5,
    seed: int = 0,
) -> Attribution:
    """The slope of r in 1 - m, as in LIME, on the draws of `iss`: cov(1 - m, r) / var(m).

    It is an unbiased estimate of E[r | region replaced] - E[r | region kept]. A region that never
    matters scores 0, up to noise of order std(r) / sqrt(samples) on either side. Arguments and
    errors as for `iss`; masks are independent, so no system of equations is solved.
    """
    drawn = _Drawn.of(policy, obs, patch, samples, probability, seed)
    change, value, start = drawn.changes(
        policy, obs, key, readout, patch=patch, baseline=baseline, chunk=chunk
    )
    centred = change - change.mean(axis=0, keepdims=True)
    covariance = centred.T @ (drawn.replaced - probability) / (samples - 1)
    scores = covariance / (probability * (1 - probability))
    return Attribution.unsigned(per_element(drawn.unravel, scores), value, start, patch)


class _Drawn(NamedTuple):
    """Random masks [n, regions], 1 where a region is replaced, and how to read one."""

    replaced: Float[Array, "n r"]
    unravel: Callable[[Array], Regions]

    @classmethod
    def of(
        cls,
        policy: Policy,
        obs: Observation,
        patch: PatchSize,
        samples: int,
        probability: float,
        seed: int,
    ) -> _Drawn:
        if samples < 2 or not 0 < probability < 1:
            raise ValueError(
                f"samples={samples}, probability={probability}: expected at least 2 samples and a "
                "probability between 0 and 1."
            )
        unravel, size = each_region(policy, obs, patch)
        key, shape = jax.random.key(seed), (samples, size)
        drawn = jax.random.bernoulli(key, jnp.float32(probability), shape)
        return cls(drawn.astype(jnp.float32), unravel)

    def changes(
        self, policy: Policy, obs: Observation, key: Array, readout: Readout, **options: Any
    ) -> tuple[Float[Array, "n b"], Float[Array, " b"], Float[Array, " b"]]:
        """(absolute change of the readout in each sample, the readout, that of the baseline)."""
        ends = jnp.stack([jnp.zeros_like(self.replaced[0]), jnp.ones_like(self.replaced[0])])
        masks = jax.vmap(self.unravel)(jnp.concatenate([self.replaced, ends]))
        values = effects(policy, obs, key, readout, masks, **options)
        return jnp.abs(values[:-2] - values[-2:-1]), values[-2], values[-1]


@compiled
def equal_area(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    attribution: Attribution,
    *,
    baseline: Baseline = Baseline(),
    chunk: int = 8,
    share: float = 0.1,
    draws: int = 16,
    seed: int = 0,
) -> tuple[Float[Array, " b"], Float[Array, "n b"]]:
    """What any map is to be held against: how much the readout changes where its strongest patches
    are replaced, and where as many random ones are.

    Cost: draws + 2 inferences of the batch.

    Args:
        policy, obs, key, readout, baseline, chunk: as for `effects`.
        attribution: of the same batch, by any method.
        share: of the patches of all cameras, at least one.
        draws: random sets of patches.
        seed: of these.

    Returns:
        Absolute changes: of the strongest patches, and of each random set.
    """
    patch, grids = attribution.patch, jax.tree.leaves(attribution.images)
    strength = jnp.concatenate([jnp.abs(g).reshape(len(g), -1) for g in grids], axis=1)
    count = max(1, round(share * strength.shape[1]))
    drawn = jax.random.uniform(jax.random.key(seed), (draws, *strength.shape))
    order = jnp.concatenate([-strength[None], drawn])
    chosen = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1) < count
    unravel, size = each_region(policy, obs, patch)
    masks = jnp.zeros((draws + 2, len(strength), size), jnp.float32)  # the first replaces nothing
    masks = masks.at[1:, :, : strength.shape[1]].set(chosen.astype(jnp.float32))
    regions = jax.vmap(lambda vectors: per_element(unravel, vectors))(masks)
    values = effects(
        policy, obs, key, readout, regions, patch=patch, baseline=baseline, chunk=chunk
    )
    change = jnp.abs(values[1:] - values[:1])
    return change[0], change[1:]


def nuisance_regions(
    segmentation: Int[Array, "b h w"], relevant: Int[Array, " n"], patch: PatchSize
) -> Float[Array, "b gy gx"]:
    """The share of each patch's pixels that shows none of the relevant ids.

    Args:
        segmentation: one id per pixel, at the size of the model's image.
        relevant: ids of what the task is about (objects, gripper).
        patch: pixels (height, width) of one patch.
    """
    nuisance = ~jnp.isin(segmentation, relevant)
    rows, columns = segmentation.shape[1] // patch[0], segmentation.shape[2] // patch[1]
    cut = nuisance[:, : rows * patch[0], : columns * patch[1]]
    return cut.reshape(len(cut), rows, patch[0], columns, patch[1]).mean(axis=(2, 4))


def nuisance_mass_ratio(
    attribution: Attribution, nuisance: Mapping[str, Float[Array, "b gy gx"]], top: float = 1.0
) -> Float[Array, " b"]:
    """The share of the absolute attribution on images that lies on nuisance pixels; NaN if there
    is no attribution at all.

    Args:
        attribution: by any method.
        nuisance: camera (at least one) -> share of each patch that is nuisance; other cameras do
            not count.
        top: share of the patches that counts, the strongest ones: 0.1 gives NMR@10.

    Raises:
        ValueError: no camera, one that the attribution does not have, shares that do not fit, or
            no patch at all.
    """
    if not 0 < top <= 1:
        raise ValueError(f"top is {top}: expected a share of the patches, above 0 and up to 1.")
    if unknown := sorted(set(nuisance) - set(attribution.images)):
        raise ValueError(
            f"no attribution on cameras {unknown}: there are {sorted(attribution.images)}."
        )
    wrong = {n: s.shape for n, s in nuisance.items() if s.shape != attribution.images[n].shape}
    if wrong or not nuisance:
        raise ValueError(
            f"nuisance has shapes {wrong}: expected those of the attribution's images."
        )
    check_shares("nuisance regions", dict(nuisance))
    rows = len(attribution.value)
    mass = [jnp.abs(attribution.images[name]).reshape(rows, -1) for name in nuisance]
    share = [nuisance[name].reshape(rows, -1) for name in nuisance]
    mass, share = jnp.concatenate(mass, axis=1), jnp.concatenate(share, axis=1)
    strongest = jax.lax.top_k(mass, math.ceil(top * mass.shape[1]))[0][:, -1:]
    mass = jnp.where(mass >= strongest, mass, 0.0)
    return (mass * share).sum(axis=1) / mass.sum(axis=1)
