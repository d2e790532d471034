"""An `Imputer` from clean episodes; every tenth is held out, to say how well it does.

Cost: 5,000 steps of 256 pairs take under a minute per camera on one core.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from mistjax.steer.remedies.imputer import Imputer, network

HELD_OUT = 10
MARGIN = 2.0
"""How much stranger than in any clean episode other cameras may look."""


@dataclasses.dataclass(frozen=True)
class Unexplained:
    """Share of a camera's variance in held-out clean episodes that is not predicted.

    Attributes:
        imputed: by the imputer.
        held: by the last good tokens as they were.
    """

    camera: str
    imputed: float
    held: float

    def __str__(self) -> str:
        return (
            f"{self.camera}: {self.imputed:.0%} of the variance unexplained, "
            f"holding the last good tokens leaves {self.held:.0%}"
        )


def fit_imputer(
    cameras: tuple[str, ...],
    tokens: Float[np.ndarray, "n c t"],
    states: Float[np.ndarray, "n s"],
    episode: Int[np.ndarray, " n"],
    *,
    components: int = 128,
    hidden: int = 384,
    features: int = 64,
    steps: int = 5000,
    batch: int = 256,
    seed: int = 0,
) -> tuple[Imputer, tuple[Unexplained, ...]]:
    """Fits one network per camera.

    Args:
        cameras: names, in the model's order.
        tokens: projected image tokens of every inference, flat for each camera.
        states: normalised.
        episode: which episode an inference is of, ascending.
        components: largest number of principal components of each camera.
        hidden: width of the two hidden layers.
        features: random features of the state.
        steps: of training.
        batch: pairs of inferences per step.
        seed: of weights, features and pairs.

    Raises:
        ValueError: fewer than two episodes in one of the two parts.
    """
    held = episode % HELD_OUT == 0
    parts = [np.unique(episode[part]) for part in (held, ~held)]
    if min(map(len, parts)) < 2:
        raise ValueError(
            f"{len(np.unique(episode))} clean episodes: every tenth is held out, and at least two "
            "are needed there; fit to at least 11, better to some hundred."
        )
    rng, width = np.random.default_rng(seed), states.shape[1]
    kept = min(components, tokens.shape[2], int((~held).sum()) - 1)
    mean = tokens[~held].mean(0)
    basis = [_principal(tokens[~held, c] - mean[c], kept) for c in range(len(cameras))]
    scale = np.array([np.sqrt(max(values.mean(), 1e-12)) for values, _ in basis])
    total = np.square(tokens[~held] - mean).sum(-1).mean(0)
    sizes = (len(cameras) * kept + 2 * (width + features), hidden, hidden, kept + 1)
    layers = []
    for number, (i, o) in enumerate(itertools.pairwise(sizes)):
        gain = 0.1 if number == len(sizes) - 2 else 1.0
        weights = gain * rng.normal(size=(len(cameras), i, o)) / np.sqrt(i)
        layers.append((jnp.asarray(weights, jnp.float32), jnp.zeros((len(cameras), o))))

    def single(array: Any) -> Any:
        return jnp.asarray(array, jnp.float32)

    imputer = Imputer(
        mean=single(mean),
        directions=single(np.stack([v / s for (_, v), s in zip(basis, scale, strict=True)])),
        scale=single(scale),
        spread=single(np.stack([np.sqrt(v) / s for (v, _), s in zip(basis, scale, strict=True)])),
        rest=single(total - np.stack([values.sum() for values, _ in basis])),
        frequencies=single(1.5 * rng.normal(size=(width, features)) * np.sqrt(3 / max(width, 3))),
        phases=single(rng.uniform(0, 2 * np.pi, features)),
        layers=tuple(layers),
        usual=jnp.ones(len(cameras)),
        familiar=jnp.full(len(cameras), jnp.inf),
        cameras=cameras,
    )
    codes = np.asarray(imputer.codes(single(tokens)))
    found = [
        _train(imputer, c, codes, states, episode, ~held, steps, batch, rng)
        for c in range(len(cameras))
    ]
    layers = jax.tree.map(lambda *arrays: jnp.stack(arrays), *found)
    imputer = dataclasses.replace(imputer, layers=tuple(layers))
    return _measured(imputer, tokens, states, episode, held, rng)


def _principal(x: Float[np.ndarray, "n t"], kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvalues of the covariance, and their vectors."""
    if x.shape[1] <= len(x):
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        return np.maximum(values[::-1][:kept], 1e-12), vectors[:, ::-1][:, :kept]
    values, left = np.linalg.eigh(x @ x.T / len(x))
    values, left = np.maximum(values[::-1][:kept], 1e-12), left[:, ::-1][:, :kept]
    return values, x.T @ left / np.sqrt(values * len(x))


def _pairs(
    episode: Int[np.ndarray, " n"], part: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(later inferences of the part, earlier ones of the same episode)."""
    first = np.searchsorted(episode, episode)
    later = rng.choice(np.flatnonzero(part & (np.arange(len(episode)) > first)), count)
    return later, first[later] + (rng.random(count) * (later - first[later])).astype(int)


def _train(imputer, camera, codes, states, episode, part, steps, batch, rng):
    """The trained layers of one camera, without its axis."""
    layers = [(w[camera], b[camera]) for w, b in imputer.layers]
    optimiser = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-2)
    features = np.asarray(imputer.features(jnp.asarray(states, jnp.float32)))
    others = np.delete(codes, camera, axis=1).reshape(len(codes), -1)
    mine = codes[:, camera]

    @jax.jit
    def step(layers, memory, x, change):
        def loss(layers):
            out = network(layers, x)
            error = jnp.square(out[:, :-1] - change).mean(-1)
            share = out[:, -1]
            doubt = share + jax.lax.stop_gradient(error) * jnp.exp(-share)
            return error.mean() + 0.01 * doubt.mean()

        updates, memory = optimiser.update(jax.grad(loss)(layers), memory, layers)
        return optax.apply_updates(layers, updates), memory

    memory = optimiser.init(layers)
    for _ in range(steps):
        k, j = _pairs(episode, part, batch, rng)
        x = np.concatenate([others[k], mine[j], features[k], features[j]], axis=1)
        layers, memory = step(layers, memory, x, mine[k] - mine[j])
    return layers


def _measured(
    imputer: Imputer, tokens, states, episode, held, rng
) -> tuple[Imputer, tuple[Unexplained, ...]]:
    """The imputer with its limits, and how well it does, from the held-out episodes."""
    k, j = _pairs(episode, held, 4000, rng)
    codes, state = imputer.codes(jnp.asarray(tokens)), jnp.asarray(states, jnp.float32)
    usual, familiar, said = [], [], []
    for camera, name in enumerate(imputer.cameras):
        before = imputer.code(jnp.asarray(tokens[j, camera]), camera)
        change, share = imputer.predict(camera, codes[k], before, state[k], state[j])
        imputed = np.asarray(imputer.decode(before + change, camera))
        away = np.square(tokens[k, camera] - imputed).sum(-1)
        error = np.asarray(share) * codes.shape[-1] * imputer.scale[camera] ** 2
        usual.append(np.quantile(away / (error + np.asarray(imputer.rest[camera])), 0.95))
        familiar.append(MARGIN * np.asarray(imputer.strangeness(codes, camera)).max())
        all_of_it = np.square(tokens[k, camera] - np.asarray(imputer.mean[camera])).sum()
        holding = np.square(tokens[k, camera] - tokens[j, camera]).sum()
        said.append(Unexplained(name, float(away.sum() / all_of_it), float(holding / all_of_it)))
    limits = (jnp.asarray(values, jnp.float32) for values in (usual, familiar))
    usual, familiar = limits
    return dataclasses.replace(imputer, usual=usual, familiar=familiar), tuple(said)
