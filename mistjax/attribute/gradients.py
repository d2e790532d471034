"""Integrated gradients, gradient x input and saliency of any readout, through the whole model.

Source: Sundararajan et al., arXiv 1703.01365 (integrated gradients); Simonyan et al., arXiv
1312.6034 (saliency); Shrikumar et al., arXiv 1605.01713 (gradient x input). Cost: a forward and a
backward pass of the whole inference a step, plus two for the two ends.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.attribute.attribution import Attribution, evaluate
from mistjax.attribute.batching import blocks, compiled
from mistjax.attribute.inputs import Baseline, Inputs, PatchSize, Regions, patch_sums
from mistjax.attribute.readouts import Readout
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy

NodesAndWeights = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


def midpoint(steps: int) -> NodesAndWeights:
    """The middles of equal parts of [0, 1]."""
    return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)


def gauss_legendre(steps: int) -> NodesAndWeights:
    """Exact for polynomials of degree 2 steps - 1; the nodes crowd at both ends."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


def graded(steps: int) -> NodesAndWeights:
    """Gauss-Legendre in u with alpha = u^3: the nodes crowd at the baseline.

    There a normalisation layer may see an almost constant input (a state of 0, a zero embedding)
    and change its output within a thousandth of the line, which evenly spread nodes step over.
    """
    u, weights = gauss_legendre(steps)
    return u**3, 3 * u**2 * weights


QUADRATURES = {"graded": graded, "gauss_legendre": gauss_legendre, "midpoint": midpoint}


@compiled
def integrated_gradients(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize,
    baseline: Baseline = Baseline(),
    chunk: int = 8,
    steps: int = 32,
    quadrature: str = "graded",
) -> Attribution:
    """Gradients averaged along the straight line from the baseline, times the distance.

    Args:
        policy: the policy.
        obs: a batch.
        key: of the sampling noise, the same along the whole line.
        readout: what is attributed.
        patch: pixels (height, width) of one region.
        baseline: where the line begins.
        chunk: steps of the line in memory at a time, each the whole batch.
        steps: points on the line.
        quadrature: `graded`, `gauss_legendre` or `midpoint`.

    Raises:
        ValueError: unknown quadrature, or no step.
    """
    if quadrature not in QUADRATURES or steps < 1:
        raise ValueError(
            f"steps={steps}, quadrature={quadrature!r}: expected at least one step and one of "
            f"{tuple(QUADRATURES)}."
        )
    line = _Line(policy, obs, baseline)
    gradients, value, start = line.mean_gradient(
        key, readout, *QUADRATURES[quadrature](steps), chunk
    )
    return Attribution.signed(line.shares(gradients, patch), value, start, patch)


@compiled
def gradient_x_input(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize,
    baseline: Baseline = Baseline(),
    chunk: int = 8,
) -> Attribution:
    """The gradient times the distance to the baseline; arguments as for `integrated_gradients`."""
    line = _Line(policy, obs, baseline)
    gradients, value, start = line.mean_gradient(key, readout, np.ones(1), np.ones(1), chunk)
    return Attribution.signed(line.shares(gradients, patch), value, start, patch)


@compiled
def saliency(
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize,
    baseline: Baseline = Baseline(),
    chunk: int = 8,
) -> Attribution:
    """Absolute gradients, summed over each patch and each word's embedding; arguments as for
    `integrated_gradients`. The units of pixels, words and states differ.
    """
    line = _Line(policy, obs, baseline)
    gradients, value, start = line.mean_gradient(key, readout, np.ones(1), np.ones(1), chunk)
    return Attribution.unsigned(
        _regions(jax.tree.map(jnp.abs, gradients), patch), value, start, patch
    )


class _Line:
    """The straight line from a baseline to an observation's inputs."""

    def __init__(self, policy: Policy, obs: Observation, baseline: Baseline):
        self.policy, self.obs = policy, obs
        self.end = Inputs.of(policy, obs)
        self.start = baseline.inputs(policy, obs, self.end)

    def at(self, alpha: Array) -> Inputs:
        return jax.tree.map(
            lambda b, x: b + (alpha * (x - b)).astype(x.dtype), self.start, self.end
        )

    def mean_gradient(
        self, key: Array, readout: Readout, nodes: np.ndarray, weights: np.ndarray, chunk: int
    ) -> tuple[Inputs, Array, Array]:
        """(weighted sum of the gradients at the nodes, readout at the end, readout at the start).

        Both ends come last as nodes of weight 0: the model is traced once, and the repetitions that
        fill the last chunk add nothing.
        """

        def gradient(alpha):
            def total(inputs):
                values = evaluate(self.policy, self.obs, key, readout, inputs)
                return values.sum(), values

            return jax.grad(total, has_aux=True)(self.at(alpha))

        def add(mean, block):
            alphas, shares = block
            gradients, values = jax.vmap(gradient)(alphas)
            mean = jax.tree.map(
                lambda m, g: m + jnp.tensordot(shares.astype(g.dtype), g, axes=1), mean, gradients
            )
            return mean, values

        ends = jnp.array([1.0, 0.0], jnp.float32)
        alphas = jnp.concatenate([jnp.asarray(nodes, jnp.float32), ends])
        shares = jnp.concatenate([jnp.asarray(weights, jnp.float32), 0 * ends])
        zero = jax.tree.map(jnp.zeros_like, self.end)
        mean, values = jax.lax.scan(add, zero, blocks((alphas, shares), chunk))
        values = values.reshape(-1, values.shape[-1])
        return mean, values[len(nodes)], values[len(nodes) + 1]

    def shares(self, gradients: Inputs, patch: PatchSize) -> Regions:
        change = jax.tree.map(lambda g, x, b: g * (x - b), gradients, self.end, self.start)
        return _regions(change, patch)


def _regions(inputs: Inputs, patch: PatchSize) -> Regions:
    return Regions(
        images={name: patch_sums(x, patch) for name, x in inputs.images.items()},
        text=inputs.text.sum(axis=-1),
        state=inputs.state,
    )
