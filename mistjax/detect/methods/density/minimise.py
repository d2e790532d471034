"""Minimise a loss over frames in minibatches: the training loop of the density and novelty
detectors.

One compiled `lax.scan` over epochs; with `validation` frames the best epoch's parameters are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Params = TypeVar("Params", bound=Any)


@partial(jax.jit, static_argnames=("loss", "optimizer", "epochs", "batch_size"))
def minimise(
    loss: Callable[[Any, Any, PyTree, Array], Array],
    params: Params,
    fixed: PyTree,
    frames: PyTree,
    key: PRNGKeyArray,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int,
    validation: PyTree | None = None,
) -> tuple[Params, Float[Array, " e"]]:
    """Train `params`.

    Args:
        loss: `loss(params, fixed, batch, key)`, a scalar mean over the batch.
        params: initial parameters.
        fixed: arrays that the loss needs and that are not trained.
        frames: pytree of arrays [m, ...] that are shuffled together.
        key: for shuffling and for the loss.
        optimizer: update rule with its schedule.
        epochs: passes over the frames.
        batch_size: frames per step; the remainder of an epoch is left out (a different one each
            time).
        validation: frames of the same structure that choose the epoch.

    Returns:
        The last or best parameters, and the mean training loss of each epoch.
    """
    m = jax.tree.leaves(frames)[0].shape[0]
    size = min(batch_size, m)

    def step(carry: tuple, inputs: tuple) -> tuple:
        params, opt_state = carry
        index, key = inputs
        batch = jax.tree.map(lambda x: x[index], frames)
        value, grads = jax.value_and_grad(loss)(params, fixed, batch, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def epoch(carry: tuple, key: Array) -> tuple:
        params, opt_state, best, best_value = carry
        shuffle, steps, held = jax.random.split(key, 3)
        order = jax.random.permutation(shuffle, m)[: m // size * size].reshape(-1, size)
        keys = jax.random.split(steps, len(order))
        (params, opt_state), values = jax.lax.scan(step, (params, opt_state), (order, keys))
        value = jnp.array(-1.0) if validation is None else loss(params, fixed, validation, held)
        better = (value < best_value) | (validation is None)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
        return (params, opt_state, best, jnp.where(better, value, best_value)), values.mean()

    start = (params, optimizer.init(params), params, jnp.array(jnp.inf))
    (_, _, best, _), history = jax.lax.scan(epoch, start, jax.random.split(key, epochs))
    return best, history
