"""`LinearProbe`: a shrunken linear discriminant on the hidden state of a step.

Three things make a linear direction, learned from a few hundred episodes, worth more than a deep
head on data of that size:

- every episode weighs the same, however long it runs: long failures do not teach the length;
- the covariance is shrunk towards the diagonal of z-scored features (a closed form, no optimiser,
  no seed);
- what differs between tasks and not between outcomes is taken out, in one of two ways. `baseline`
  reads the change since the episode's first steps. `within_tasks` learns from the difference of
  outcomes inside each task only.

With `horizon` the direction may turn linearly with time: what announces a failure early is not what
shows it late. Source: Fisher's discriminant with shrinkage (Friedman, 1989). Fitting costs one
covariance of all frames, O(frames x d^2), and one solve; a step costs one product.
"""

from __future__ import annotations

import flax.struct as struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from mistjax.detect.data import Episodes
from mistjax.detect.detector import Leaf


@struct.dataclass
class LinearProbe:
    """Score = bias + x . weights + clock * (tempo + x . drift), the log odds of failure if frames
    were Gaussian.

    Attributes:
        weights: [d].
        drift: [d] change of the weights from the clock's 0 to its 1.
        bias, tempo: scalars.
        baseline: x is taken relative to the mean of this many first steps (those so far, at the
            start); 0 takes it as it is.
        horizon: steps until the clock stands at 1; 0 has no clock.
    """

    weights: Leaf
    drift: Leaf
    bias: Leaf
    tempo: Leaf
    baseline: int = struct.field(pytree_node=False, default=0)
    horizon: int = struct.field(pytree_node=False, default=0)

    def init_state(self, batch: int) -> PyTree:
        width = self.weights.shape[0] if self.baseline else 0
        origin = jnp.zeros((batch, width), jnp.float32)
        return {"steps": jnp.zeros(batch, jnp.float32), "origin": origin}

    def _advance(self, state: PyTree, features: Array) -> tuple[PyTree, Array]:
        """The next state, and the features relative to the start."""
        steps, origin = state["steps"], state["origin"]
        if self.baseline:
            mean = origin + (features - origin) / (steps[:, None] + 1)
            origin = jnp.where(steps[:, None] < self.baseline, mean, origin)
            features = features - origin
        return {"steps": steps + 1, "origin": origin}, features

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        """The score of this step."""
        _, x = self._advance(state, features)
        clock = jnp.minimum(state["steps"] / self.horizon, 1.0) if self.horizon else jnp.float32(0)
        return self.bias + x @ self.weights + clock * (self.tempo + x @ self.drift)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return self._advance(state, features)[0], self.logit(state, features)


def fit_linear_probe(
    episodes: Episodes,
    *,
    shrinkage: float = 0.3,
    baseline: int = 0,
    horizon: int = 0,
    within_tasks: bool = False,
) -> LinearProbe:
    """Fit on all valid steps.

    Args:
        episodes: training episodes.
        shrinkage: 0 keeps the covariance of the z-scored features, 1 replaces it by a multiple of
            the identity.
        baseline, horizon: see `LinearProbe`.
        within_tasks: learn from differences inside tasks; one with a single outcome then only
            shapes the covariance.

    Raises:
        ValueError: shrinkage outside (0, 1], a negative baseline or horizon, one class only,
            non-finite features.
    """
    success = np.asarray(episodes.success, bool)
    if not 0 < shrinkage <= 1 or baseline < 0 or horizon < 0:
        raise ValueError(
            f"shrinkage is {shrinkage}, baseline {baseline}, horizon {horizon}: expected shrinkage "
            "in (0, 1] and steps >= 0."
        )
    if success.all() or not success.any():
        raise ValueError(
            f"{success.sum()} of {len(success)} episodes succeeded; a probe needs successes and "
            "failures."
        )
    frames = _relative(np.asarray(episodes.features, np.float32), baseline)
    mask = np.asarray(episodes.mask)
    x, lengths = frames[mask], mask.sum(1)
    if not np.isfinite(x).all():
        raise ValueError(
            "training features contain NaN or Inf; drop those episodes or fix the tap."
        )
    if horizon:
        clock = np.minimum(np.arange(mask.shape[1]) / horizon, 1).astype(np.float32)
        clock = np.broadcast_to(clock, mask.shape)[mask][:, None]
        x = np.concatenate([x, x * clock, clock], axis=1)
    failed = np.repeat(~success, lengths)
    weight = np.repeat(1 / lengths, lengths).astype(np.float32)
    task = np.repeat(np.asarray(episodes.task_id), lengths) if within_tasks else 0 * failed
    direction, middle = _discriminant(x, failed, weight, task, shrinkage)
    d = frames.shape[-1]
    weights, drift, tempo = np.split(direction, [d, 2 * d]) if horizon else (direction, 0, 0)
    as_jax = [
        jnp.asarray(np.broadcast_to(value, shape), jnp.float32)
        for value, shape in (
            (weights, (d,)),
            (drift, (d,)),
            (-middle @ direction, ()),
            (np.sum(tempo), ()),
        )
    ]
    return LinearProbe(*as_jax, baseline=baseline, horizon=horizon)


def _relative(features: Float[np.ndarray, "n t d"], baseline: int) -> Float[np.ndarray, "n t d"]:
    """Features minus the mean of the first `baseline` steps, of those so far before that."""
    if not baseline:
        return features
    head = features[:, :baseline]
    so_far = np.cumsum(head, axis=1) / np.arange(1, head.shape[1] + 1)[:, None]
    rest = np.repeat(so_far[:, -1:], features.shape[1] - head.shape[1], axis=1)
    return features - np.concatenate([so_far, rest], axis=1)


def _discriminant(
    x: Float[np.ndarray, "m d"],
    failed: Bool[np.ndarray, " m"],
    weight: Float[np.ndarray, " m"],
    task: Int[np.ndarray, " m"],
    shrinkage: float,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """The direction from success to failure, and the point half-way between their means."""

    def mean(rows: np.ndarray) -> np.ndarray:
        return np.average(x[rows], axis=0, weights=weight[rows])

    scale = x.std(0)
    scale[scale == 0] = 1
    gaps, total, covariance = 0.0, 0.0, 0.0
    for k in np.unique(task):
        groups = [rows for rows in ((task == k) & failed, (task == k) & ~failed) if rows.any()]
        for rows in groups:
            centred = (x[rows] - mean(rows)) / scale * np.sqrt(weight[rows])[:, None]
            share = weight[failed if failed[rows][0] else ~failed].sum()
            covariance = covariance + (centred.T @ centred).astype(np.float64) / share / 2
        if len(groups) == 2:
            pairs = min(weight[rows].sum() for rows in groups)
            gaps = gaps + pairs * (mean(groups[0]) - mean(groups[1])) / scale
            total += pairs
    if not total:
        raise ValueError("no task has both outcomes; pass within_tasks=False.")
    d = len(scale)
    covariance = np.asarray(covariance)
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / d * np.eye(d)
    direction = np.linalg.solve(covariance, gaps / total) / scale
    return direction, (mean(failed) + mean(~failed)) / 2
