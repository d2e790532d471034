"""Visual odometry: how far the robot moved between two looks, as one camera sees it.

A small network from a camera's tokens at both looks, and the state at the first, to the change of
the state; fitted to pairs of looks of clean episodes. It settles who is right where the state
disagrees with dead reckoning: a wrong sensor leaves the picture where the command led, a push moves
it too. Cost of fitting: some 20 s per camera for 400 episodes on one core.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mistjax.detect.novelty.networks import Layers, fit_networks, network


@flax.struct.dataclass
class Odometer:
    """One network per camera, their arrays stacked.

    Attributes:
        mean, directions: principal components of a camera's tokens.
        layers: of the networks.
        precision: inverse covariance of the error, the average over the looks in memory; the
            identity until it is measured.
    """

    mean: Float[Array, "c t"]
    directions: Float[Array, "c t k"]
    layers: Layers
    precision: Float[Array, "c s s"]

    def moved(
        self,
        now: Float[Array, "b c t"],
        before: Float[Array, "b c t"],
        state: Float[Array, "b s"],
    ) -> Float[Array, "b c s"]:
        """The change of the state since an earlier look, as each camera sees it.

        Args:
            now: tokens of each camera.
            before: at the earlier look.
            state: at the earlier look.
        """
        codes = [
            jnp.einsum("bct,ctk->bck", x - self.mean[None], self.directions) for x in (now, before)
        ]
        states = jnp.broadcast_to(state[:, None], (*codes[0].shape[:2], state.shape[-1]))
        return network(self.layers, jnp.concatenate([*codes, states], axis=-1))


def pairs(
    episode: Int[np.ndarray, " n"], count: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """(later looks, earlier looks of the same episode), half of them one look apart."""
    later = rng.integers(0, len(episode), count)
    first = np.searchsorted(episode, episode[later])
    any_before = first + (rng.random(count) * (later - first)).astype(int)
    near = rng.random(count) < 0.5
    return later, np.where(near, np.maximum(later - 1, first), any_before)


def fit_odometer(
    tokens: Float[np.ndarray, "n c t"],
    states: Float[np.ndarray, "n s"],
    episode: Int[np.ndarray, " n"],
    *,
    components: int = 192,
    hidden: tuple[int, ...] = (384, 192),
    steps: int = 3000,
    batch: int = 256,
    noise: float = 0.4,
    seed: int = 0,
) -> Odometer:
    """Fits one network per camera.

    Args:
        tokens: of every look of clean episodes, flat for each camera.
        states: normalised.
        episode: which episode a look is of, ascending.
        components: largest number of principal components kept.
        hidden: widths of the network.
        steps: of training.
        batch: pairs per step.
        noise: standard deviation of the noise on the components while training; their own mean
            square is 1.
        seed: of weights, pairs and noise.
    """
    cameras, width = tokens.shape[1], states.shape[1]
    mean = tokens.mean(0)
    kept = min(components, tokens.shape[2], len(tokens) - 1)
    directions = []
    for camera in range(cameras):
        x = tokens[:, camera] - mean[camera]
        values, vectors = _principal(x, kept)
        directions.append(vectors / np.sqrt(values.mean()))
    directions = np.stack(directions).astype(np.float32)
    codes = np.einsum("nct,ctk->nck", tokens - mean, directions).astype(np.float32)

    def batch_of(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        k, j = pairs(episode, batch, rng)
        before = np.broadcast_to(states[j][:, None], (batch, cameras, width))
        return (
            np.concatenate([codes[k], codes[j], before], axis=-1),
            (states[k] - states[j])[:, None],
        )

    layers = fit_networks(
        batch_of,
        (2 * kept + width, *hidden, width),
        networks=cameras,
        noisy=2 * kept,
        noise=noise,
        steps=steps,
        seed=seed,
    )
    eye = jnp.broadcast_to(jnp.eye(width), (cameras, width, width))
    return Odometer(jnp.asarray(mean), jnp.asarray(directions), layers, eye)


def _principal(
    x: Float[np.ndarray, "n t"], kept: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "t k"]]:
    """Largest eigenvalues of the covariance and their vectors, by the smaller of both Gram
    matrices."""
    n, t = x.shape
    if t <= n:
        values, vectors = np.linalg.eigh(x.T @ x / n)
        return values[::-1][:kept], vectors[:, ::-1][:, :kept]
    values, left = np.linalg.eigh(x @ x.T / n)
    values, left = values[::-1][:kept], left[:, ::-1][:, :kept]
    return values, x.T @ left / np.sqrt(np.maximum(values * n, 1e-12))
