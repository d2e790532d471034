"""Train a failure head with Optax: a run is one compiled program of some epochs, called until all
are done, and seeds and grids are a `vmap` of it. The number of epochs, the learning rate and the
weight of L2 are arguments: another value does not recompile.

Minibatches are whole episodes in random order. The last epoch's parameters are kept, as SAFE does,
unless `select="best"` asks for the epoch with the best validation ROC-AUC by earliest stop.
Source: SAFE (arXiv 2506.09937), section 5 and its released training options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree
from tqdm.auto import tqdm

from mistjax.detect.data import Episodes
from mistjax.detect.methods.safe.losses import class_weights, loss_and_gradient
from mistjax.detect.methods.safe.recipe import TrainConfig, learning_rate, update_rule

Head = TypeVar("Head", bound=Any)
_EPOCHS_A_CALL = 50


class History(NamedTuple):
    """Per epoch, leading axes [..., epochs]. `val_auc` is NaN in epochs without a validation."""

    loss: Array
    learning_rate: Array
    val_auc: Array


class _Run(NamedTuple):
    head: Any
    opt_state: PyTree
    best: Any
    best_auc: Array
    key: Array


def earliest_stop_auc(
    scores: Float[Array, "n t"], success: Bool[Array, " n"], earliest_stop: Array
) -> Float[Array, ""]:
    """ROC-AUC of the largest score before the earliest stop, by comparing every pair; jittable. NaN
    with one class.
    """
    early = jnp.arange(scores.shape[1])[None] < earliest_stop[:, None]
    peak = jnp.max(jnp.where(early, scores, -jnp.inf), axis=1)
    above = jnp.sign(peak[:, None] - peak[None, :]) / 2 + 0.5
    pairs = (~success[:, None] & success[None, :]).astype(above.dtype)
    return jnp.sum(above * pairs) / jnp.sum(pairs)


def _epoch(
    config: TrainConfig, train: Episodes, validation: Episodes | None, hyper: dict, weights: Array
):
    rule = update_rule(config)
    n = train.success.shape[0]
    size = min(config.batch_size, n)
    full, rest = divmod(n, size)

    def batch_step(rate: Array, carry: tuple, index: Array) -> tuple:
        head, opt_state, key = carry
        key, sub = jax.random.split(key)
        b = jax.tree.map(lambda x: x[index], (train.features, train.mask, train.success))
        loss, grads = loss_and_gradient(
            head, b, weights, config.loss, hyper["l2"], sub, config.group
        )
        with jax.numpy_dtype_promotion("standard"):  # optax divides by integers
            updates, opt_state = rule.update(grads, opt_state, head)
        head = jax.tree.map(lambda p, u: p + rate * u, head, updates)
        return (head, opt_state, key), loss * index.shape[0] / n

    def validate(head: Any, epoch: Array) -> Array:
        held = validation
        if held is None:
            return jnp.array(jnp.nan, jnp.float32)
        due = ((epoch + 1) % config.validate_every == 0) | (epoch + 1 == hyper["epochs"])
        return jax.lax.cond(
            due,
            lambda: earliest_stop_auc(
                head.sequence(held.features), held.success, held.earliest_stop
            ),
            lambda: jnp.array(jnp.nan, jnp.float32),
        )

    def epoch_step(run: _Run, epoch: Array) -> tuple[_Run, History]:
        key, shuffle = jax.random.split(run.key)
        rate = learning_rate(config, hyper["learning_rate"], epoch)
        order = jax.random.permutation(shuffle, n)
        carry = (run.head, run.opt_state, key)
        carry, losses = jax.lax.scan(
            partial(batch_step, rate), carry, order[: full * size].reshape(full, size)
        )
        loss = losses.sum()
        if rest:
            carry, last = batch_step(rate, carry, order[full * size :])
            loss = loss + last
        head, opt_state, key = carry
        auc = validate(head, epoch)
        better = auc > run.best_auc
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), head, run.best)
        best_auc = jnp.where(better, auc, run.best_auc)
        return _Run(head, opt_state, best, best_auc, key), History(loss, rate, auc)

    return epoch_step


@partial(jax.jit, static_argnames="config")
def _run_epochs(
    run: _Run,
    epochs: Array,
    hyper: dict,
    train: Episodes,
    validation: Episodes | None,
    config: TrainConfig,
) -> tuple[_Run, History]:
    weights = class_weights(train.success, config.loss)

    def one(run: _Run, hyper: dict) -> tuple[_Run, History]:
        return jax.lax.scan(_epoch(config, train, validation, hyper, weights), run, epochs)

    return jax.vmap(one)(run, hyper)


def train_many(
    heads: Head,
    episodes: Episodes,
    config: TrainConfig,
    keys: Key[Array, " m"],
    *,
    validation: Episodes | None = None,
    learning_rates: Sequence[float] | None = None,
    l2s: Sequence[float] | None = None,
    progress: bool = False,
) -> tuple[Head, History]:
    """Train m heads at once (seeds, learning rates, L2 weights), as one vmapped program.

    Args:
        heads: a head whose leaves have a leading axis [m], e.g. `jax.vmap(lambda k:
            SafeMLP.create(k, d))(keys)`.
        episodes: training episodes, shared by all.
        config: shared options.
        keys: [m] keys for shuffling.
        validation: episodes for `select="best"` and for the history.
        learning_rates: one per head; the config's where None.
        l2s: one per head; the config's where None.
        progress: show a progress bar.

    Returns:
        Trained heads [m, ...] and History [m, epochs]. Memory grows with m.

    Raises:
        ValueError: `select="best"` without validation, or a training set with one class only.
    """
    if config.select == "best" and validation is None:
        raise ValueError(
            'select="best" chooses an epoch on validation episodes; pass validation=..., or '
            'select="last".'
        )
    n_success = int(jnp.sum(episodes.success))
    if n_success in (0, len(episodes)):
        raise ValueError(
            f"{n_success} of {len(episodes)} training episodes succeeded; a head needs successes "
            "and failures. "
            "Collect both, or use a detector that is fitted on successes only."
        )
    m = keys.shape[0]
    hyper = {
        "learning_rate": jnp.array(learning_rates or [config.learning_rate] * m, jnp.float32),
        "l2": jnp.array(l2s or [config.loss.l2] * m, jnp.float32),
        "epochs": jnp.full(m, config.epochs, jnp.int32),
    }
    # what travels in `hyper` must not tell two programs apart
    program = dataclasses.replace(
        config,
        epochs=0,
        learning_rate=0.0,
        loss=dataclasses.replace(config.loss, l2=0.0),
        group=config.group if jax.default_backend() == "cpu" else None,
    )
    data, held = jax.device_put((episodes, validation))
    worst = jnp.full(m, -jnp.inf, jnp.float32)
    run = _Run(heads, jax.vmap(update_rule(config).init)(heads), heads, worst, keys)
    pieces = []
    with tqdm(total=config.epochs, unit="epoch", disable=not progress) as bar:
        for start in range(0, config.epochs, _EPOCHS_A_CALL):
            epochs = jnp.arange(start, min(start + _EPOCHS_A_CALL, config.epochs), dtype=jnp.int32)
            run, piece = _run_epochs(run, epochs, hyper, data, held, program)
            pieces.append(piece)
            if progress:
                bar.set_postfix(loss=float(piece.loss[:, -1].mean()))
            bar.update(len(epochs))
    history = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *pieces)
    return (run.best if config.select == "best" else run.head), history


def train(
    head: Head,
    episodes: Episodes,
    config: TrainConfig,
    key: PRNGKeyArray,
    *,
    validation: Episodes | None = None,
    progress: bool = False,
) -> tuple[Head, History]:
    """Train one head; see `train_many`."""
    heads = jax.tree.map(lambda x: x[None], head)
    heads, history = train_many(
        heads, episodes, config, key[None], validation=validation, progress=progress
    )
    return jax.tree.map(lambda x: x[0], (heads, history))
