"""Integrated gradients, gradient x input and saliency of any readout, through the whole model.

Source: Sundararajan et al., arXiv 1703.01365 (integrated gradients); Simonyan et al., arXiv
1312.6034 (saliency); Shrikumar et al., arXiv 1605.01713 (gradient x input). Cost: a forward and a
backward pass of the whole inference per step, a forward pass for the baseline, and with integrated
gradients another for the observation.
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
    """The midpoints of equal parts of [0, 1]."""
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
    gradients = line.mean_gradient(key, readout, *QUADRATURES[quadrature](steps), chunk)
    value, start = line.ends(key, readout)
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
) -> Attribution:
    """The gradient times the distance to the baseline; arguments as for `integrated_gradients`."""
    line = _Line(policy, obs, baseline)
    gradients, value = line.gradient(key, readout, line.end)
    start = evaluate(policy, obs, key, readout, line.start)
    return Attribution.signed(line.shares(gradients, patch), value, start, patch)


@compiled
def saliency(
    policy: Policy, obs: Observation, key: Array, readout: Readout, *, patch: PatchSize
) -> Attribution:
    """Absolute gradients, summed over each patch and each word's embedding; arguments as for
    `integrated_gradients`. The units of pixels, words and states differ; nothing is compared with
    a baseline, so its value is NaN.
    """
    gradients, value = _gradient(policy, obs, key, readout, Inputs.of(policy, obs))
    found = _regions(jax.tree.map(jnp.abs, gradients), patch)
    return Attribution.unsigned(found, value, jnp.full_like(value, jnp.nan), patch)


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
    ) -> Inputs:
        """The weighted sum of the gradients at the nodes."""

        def add(mean, block):
            alphas, shares = block
            gradients, _ = jax.vmap(lambda a: self.gradient(key, readout, self.at(a)))(alphas)
            more = jax.tree.map(lambda g: jnp.tensordot(shares.astype(g.dtype), g, 1), gradients)
            return jax.tree.map(jnp.add, mean, more), None

        alphas, shares = blocks((jnp.asarray(nodes, jnp.float32), jnp.asarray(weights)), chunk)
        repeated = jnp.arange(shares.size).reshape(shares.shape) >= len(nodes)
        shares = jnp.where(repeated, 0.0, shares)  # what fills the last chunk adds nothing
        zero = jax.tree.map(jnp.zeros_like, self.end)
        return jax.lax.scan(add, zero, (alphas, shares))[0]

    def ends(self, key: Array, readout: Readout) -> Float[Array, "2 b"]:
        """The readout of the observation and of the baseline."""

        def value(alpha):
            return evaluate(self.policy, self.obs, key, readout, self.at(alpha))

        return jax.vmap(value)(jnp.array([1.0, 0.0]))

    def gradient(self, key: Array, readout: Readout, inputs: Inputs) -> tuple[Inputs, Array]:
        return _gradient(self.policy, self.obs, key, readout, inputs)

    def shares(self, gradients: Inputs, patch: PatchSize) -> Regions:
        change = jax.tree.map(lambda g, x, b: g * (x - b), gradients, self.end, self.start)
        return _regions(change, patch)


def _gradient(
    policy: Policy, obs: Observation, key: Array, readout: Readout, inputs: Inputs
) -> tuple[Inputs, Float[Array, " b"]]:
    """(gradient of every element's readout in its own inputs, readout)."""

    def total(inputs):
        values = evaluate(policy, obs, key, readout, inputs)
        return values.sum(), values

    return jax.grad(total, has_aux=True)(inputs)


def _regions(inputs: Inputs, patch: PatchSize) -> Regions:
    return Regions(
        images={name: patch_sums(x, patch) for name, x in inputs.images.items()},
        text=inputs.text.sum(axis=-1),
        state=inputs.state,
    )
