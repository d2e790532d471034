"""Feedback on activations: a linear quadratic regulator over the layers of the action expert.

A steering vector pushes as hard whether or not it is needed, and not knowing what the layers behind
make of it. Here the layers are a linear system, x[l + 1] = A[l] (x[l] + u[l]) around the mean of
clean data, with A[l] the Jacobian of one layer after the other, averaged over clean inferences. The
Riccati recursion gives, once, the gains of the change u[l] = -K[l] (x[l] - mean[l]) that holds the
stream to its mean along a direction (failure to success, say) at the least

    sum over l of (direction[l] . x[l] / length[l])^2 + effort |u[l] / length[l]|^2,

x without its mean. The gains are one affine edit, made layer by layer in the scan: what a layer
gets wrong the next one sees. All flow steps share gains and mean.

Source: Skifstad, Yang and Chou (arXiv 2604.19018); there the set-point follows a wanted strength of
a feature, here it is the mean, at which nothing is done. Cost: width x depth Jacobian-vector
products of the expert for each flow step at the fit; at run time a [D,D] product in each layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.detect.novelty.build import refuse_unclean
from mistjax.hooks.edits import Add
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.sites import Tap
from mistjax.models.sampling import draw_noise, velocity
from mistjax.policies.protocol import Policy, RawObs
from mistjax.policies.wrapper import flow_of
from mistjax.rollouts.replay import replay
from mistjax.rollouts.run import Run
from mistjax.steer.affine import AffineMap
from mistjax.steer.artifact import load_steering, save_steering
from mistjax.steer.vectors import Provenance, SteeringVector

SITE = "action.resid"
FEEDBACK, CONTROL = "feedback", "feedback, random"
"""Names of the regulator along a direction, and of the one along random directions."""


def gains(
    jacobians: Float[Array, "k d d"],
    costs: Float[Array, "l d d"],
    efforts: Float[Array, " l"],
) -> Float[Array, "l d d"]:
    """K[l] of the Riccati recursion, for x[l + 1] = jacobians[l] @ (x[l] + u[l]).

    Args:
        jacobians: of the L - 1 steps.
        costs: of the state after its change, symmetric.
        efforts: price of the squared length of a change.
    """
    eye = jnp.eye(costs.shape[-1])

    def before(ahead, step):
        jacobian, cost, effort = step
        worth = cost + jacobian.T @ ahead @ jacobian
        gain = jnp.linalg.solve(worth + effort * eye, worth)
        return worth @ (eye - gain), gain

    none = jnp.zeros_like(costs[:1])
    steps = (jnp.concatenate([jacobians, none]), costs, efforts)
    return jax.lax.scan(before, none[0], steps, reverse=True)[1]


class Linear(NamedTuple):
    """Layers of an action expert around the mean of its residual stream, over clean inferences and
    all flow steps: the Jacobian of each layer but the first, and the mean after each. `tokens` are
    those that are pushed alike, of `observations` inferences of `policy` (its fingerprint).
    """

    jacobians: Float[np.ndarray, "k d d"]
    means: Float[np.ndarray, "l d"]
    tokens: str
    policy: str
    observations: int


def linearise(
    policy: Policy,
    observations: Sequence[RawObs],
    key: Array,
    *,
    tokens: str = "action",
    batch: int = 16,
) -> Linear:
    """The layers of a flow policy's action expert as a linear system.

    Args:
        policy: a flow policy.
        observations: clean ones.
        key: one PRNG key.
        tokens: a token selector; all that it means are pushed alike, and their mean is what moves.
        batch: observations at a time.

    Raises:
        ValueError: a policy without a flow, or no observation.
    """
    flow, tap = flow_of(policy), Tap(SITE, None, tokens, "mean")
    if not len(observations):
        raise ValueError("no observation: give some of clean episodes.")
    keys, found = jax.random.split(key, len(observations)), []
    for start in range(0, len(observations), batch):
        rows = np.arange(start, start + batch) % len(observations)  # one shape, one compilation
        obs = policy.prepare([observations[int(i)] for i in rows])
        prefix = flow.prefill(obs)
        speeds = flow.sample(obs, keys[rows], prefix=prefix).aux["velocity"]
        noisy = draw_noise(flow.config, keys[rows], batch)
        for step in range(flow.config.num_steps):
            found.append(_slopes(flow.model, tap, flow.variables, prefix, obs.state, noisy, step))
            noisy = noisy - speeds[:, step] / flow.config.num_steps
    jacobians, means = (np.mean(part, axis=0) for part in zip(*found, strict=True))
    return Linear(jacobians, means, tokens, policy.spec.fingerprint, len(observations))


@functools.partial(jax.jit, static_argnames=("model", "tap"))
def _slopes(model, tap, variables, prefix, state, noisy, step) -> tuple[Array, Array]:
    """(Jacobian of each layer but the first, mean after each) of one flow step and a batch."""
    sizes = model.config.action_expert.depth, model.config.action_expert.width

    def stream(push):
        hooks = Hooks.of((Add(tap.site, tap.tokens, vector=push),), (tap,))
        steps = model.config.num_steps
        seen = velocity(
            model, variables, prefix, jnp.asarray(state), noisy, step, hooks, num_steps=steps
        )[1]
        mean = seen[str(tap)].mean(axis=1)
        return mean, mean

    jacobian, mean = jax.jacfwd(stream, has_aux=True)(jnp.zeros(sizes))
    layers = jnp.arange(sizes[0] - 1)
    return jacobian[layers + 1, :, layers], mean


def feedback(
    linear: Linear, vector: SteeringVector, *, effort: float = 0.1, **details: Any
) -> AffineMap:
    """The regulator that holds an action expert to its mean along a direction.

    Args:
        linear: of `linearise`.
        vector: directions and lengths, in the residual stream of the action expert.
        effort: price of a change, see the module; above 0.
        **details: JSON values for the provenance: where the observations are from.

    Raises:
        ValueError: a vector elsewhere, of other tokens or of another policy, or an effort that is
            not above 0.
    """
    if vector.site != SITE or not np.asarray(vector.scale > 0).all():
        raise ValueError(
            f"feedback needs a direction at every layer of {SITE!r}, and this one is at "
            f"{vector.site!r}: build one from a run with that tap."
        )
    made_for = linear.tokens, linear.policy
    if (vector.tokens, vector.provenance.policy) != made_for or not 0 < effort < np.inf:
        raise ValueError(
            f"effort={effort}, a vector of tokens {vector.tokens!r} and layers of tokens "
            f"{linear.tokens!r}: expected an effort above 0, and the same tokens and policy."
        )
    length = vector.scale[:, None]
    along = vector.direction / length
    gain = gains(
        jnp.asarray(linear.jacobians),
        along[:, :, None] * along[:, None],
        effort / length[:, 0] ** 2,
    )
    details |= {"observations": linear.observations, "effort": effort}
    return AffineMap(
        weight=-jnp.swapaxes(gain, 1, 2),
        bias=jnp.einsum("lij,lj->li", gain, jnp.asarray(linear.means)),
        gate=jnp.ones(len(gain), jnp.float32),
        site=SITE,
        tokens=vector.tokens,
        provenance=Provenance(linear.policy, "feedback", details),
    )


def write_feedback(
    policy: Policy,
    run: Run,
    folder: Path,
    *,
    direction: str,
    effort: float,
    episodes: int = 8,
    inferences: int = 16,
    seed: int = 0,
) -> str:
    """Adds to the directions of a folder the feedback along one of them, `FEEDBACK`, and that along
    random ones of its length, `CONTROL`; what `mistjax fit-feedback` does.

    Args:
        policy: what the run was recorded with.
        run: clean episodes of the board, played again for what was to be seen.
        folder: of `save_steering`.
        direction, effort: see `feedback`.
        episodes: of the run, the first ones.
        inferences: of these, evenly spread.
        seed: of noise and random directions.

    Returns:
        A sentence about what it was solved from.

    Raises:
        ValueError: no such direction, a run with faults or of another policy; see `feedback` and
            `replay`.
        FileNotFoundError, FingerprintError: see `load_steering`.
    """
    artifact = load_steering(folder, policy.spec)
    vector = artifact.directions.get(direction)
    if not isinstance(vector, SteeringVector):
        known = [n for n, d in artifact.directions.items() if isinstance(d, SteeringVector)]
        raise ValueError(f"{folder} has no vector {direction!r}: choose one of {known}.")
    refuse_unclean(policy.spec, [run])
    seeds = [row["seed"] for row in run.finished[:episodes]]
    every = [dict(raw) for seed in seeds for _, raw, _ in replay(run, seed)]
    rows = np.unique(np.linspace(0, len(every) - 1, min(inferences, len(every))).astype(int))
    seen = [every[row] for row in rows]
    keys = jax.random.split(jax.random.key(seed), 2)
    linear = linearise(policy, seen, keys[0], tokens=vector.tokens)
    made = {
        name: feedback(linear, along, effort=effort, run=str(run.path))
        for name, along in ((FEEDBACK, vector), (CONTROL, vector.control(keys[1])))
    }
    directions = {**artifact.directions, **made}
    save_steering(folder, dataclasses.replace(artifact, directions=directions))
    return (
        f"{FEEDBACK!r} and its control {CONTROL!r}, from {len(seen)} inferences of {len(seeds)} "
        "episodes."
    )
