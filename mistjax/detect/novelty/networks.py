"""Small networks side by side, such as one for each camera: their arrays are stacked."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

Layers = tuple[tuple[Array, Array], ...]
"""Weights [C,I,O] and biases [C,O]."""
Batches = Callable[
    [np.random.Generator], tuple[Float[np.ndarray, "b c i"], Float[np.ndarray, "b #c o"]]
]
"""Draws (inputs, targets)."""


def network(layers: Layers, x: Float[Array, "b c i"]) -> Float[Array, "b c o"]:
    """Linear layers with GELU in between."""
    for number, (weights, bias) in enumerate(layers):
        x = jnp.einsum("bci,cio->bco", x, weights) + bias[None]
        if number + 1 < len(layers):
            x = jax.nn.gelu(x)
    return x


def fit_networks(
    draw: Batches,
    sizes: tuple[int, ...],
    *,
    networks: int,
    noisy: int,
    noise: float,
    steps: int,
    seed: int,
) -> Layers:
    """Fits all of them to the mean absolute error, by AdamW with a cosine schedule.

    Args:
        draw: one batch.
        sizes: of the inputs, the hidden layers and the outputs.
        networks: number of them.
        noisy: leading inputs that get noise while training.
        noise: its standard deviation.
        steps: of training.
        seed: of weights, batches and noise.
    """
    rng = np.random.default_rng(seed)
    layers = tuple(
        (
            jnp.asarray(rng.normal(size=(networks, i, o)) / np.sqrt(i), jnp.float32),
            jnp.zeros((networks, o)),
        )
        for i, o in itertools.pairwise(sizes)
    )
    optimiser = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=3e-2)

    @jax.jit
    def step(layers, memory, key, x, target):
        x = x.at[..., :noisy].add(noise * jax.random.normal(key, (*x.shape[:2], noisy)))

        def loss(layers):
            return jnp.abs(network(layers, x) - target).mean()

        with jax.numpy_dtype_promotion("standard"):  # optax divides by integers
            updates, memory = optimiser.update(jax.grad(loss)(layers), memory, layers)
        return optax.apply_updates(layers, updates), memory

    memory, key = optimiser.init(layers), jax.random.key(seed)
    for number in range(steps):
        x, target = draw(rng)
        layers, memory = step(
            layers, memory, jax.random.fold_in(key, number), jnp.asarray(x), jnp.asarray(target)
        )
    return layers
