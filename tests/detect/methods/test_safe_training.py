import dataclasses

import jax
import numpy as np
import pytest

from mistjax.detect import score_episodes
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.detect.methods.safe.losses import LossConfig, class_weights, loss_and_gradient
from mistjax.detect.methods.safe.recipe import TrainConfig
from mistjax.detect.methods.safe.recurrence import lstm_cell, recurrence
from mistjax.detect.methods.safe.training import (
    _EPOCHS_A_CALL,
    _run_epochs,
    earliest_stop_auc,
    train,
    train_many,
)
from mistjax.detect.metrics import peak, roc_auc

CONFIG = TrainConfig(epochs=12, batch_size=25, learning_rate=3e-3)


def create(key):
    return SafeMLP.create(key, 8, hidden=8)


def test_seeds_and_grids_train_together_as_they_would_alone(episodes):
    keys = jax.random.split(jax.random.key(0), 3)
    heads, history = train_many(
        jax.vmap(create)(keys),
        episodes,
        CONFIG,
        keys,
        learning_rates=[1e-3, 3e-3, 3e-3],
        l2s=[0.0, 1e-2, 1.0],
    )
    assert history.loss.shape == (3, 12)
    alone_config = dataclasses.replace(CONFIG, loss=LossConfig(l2=1.0))
    alone, _ = train(create(keys[2]), episodes, alone_config, keys[2])
    jax.tree.map(
        lambda m, one: np.testing.assert_allclose(m[2], one, rtol=1e-4, atol=1e-6), heads, alone
    )


def test_the_progress_bar_changes_nothing(episodes, capsys):
    plain, shown = (
        train(create(jax.random.key(1)), episodes, CONFIG, jax.random.key(2), progress=p)[1].loss
        for p in (False, True)
    )
    np.testing.assert_allclose(plain, shown, rtol=1e-6)
    assert "epoch" in capsys.readouterr().err


def test_selection_keeps_the_epoch_with_the_best_validation_auc(episodes, fresh_episodes):
    config = dataclasses.replace(CONFIG, select="best", validate_every=1)
    head, history = train(
        create(jax.random.key(1)), episodes, config, jax.random.key(2), validation=fresh_episodes
    )
    scores = score_episodes(head, fresh_episodes.features, fresh_episodes.mask)
    auc = roc_auc(peak(scores, fresh_episodes.earliest_stop), ~fresh_episodes.success)
    np.testing.assert_allclose(auc, np.nanmax(history.val_auc), atol=1e-6)


def test_selection_without_validation_is_refused(episodes):
    with pytest.raises(ValueError, match="validation"):
        train(
            create(jax.random.key(1)),
            episodes,
            dataclasses.replace(CONFIG, select="best"),
            jax.random.key(2),
        )


def test_the_pairwise_auc_counts_ties_as_half():
    scores = np.array([[0.0], [1.0], [1.0], [2.0]], np.float32)
    success = np.array([True, True, False, False])
    auc = earliest_stop_auc(
        jax.numpy.asarray(scores), jax.numpy.asarray(success), jax.numpy.ones(4, int)
    )
    assert float(auc) == roc_auc(scores[:, 0], ~success)


def test_one_random_step_learns_from_a_subset_of_steps(episodes):
    config = dataclasses.replace(CONFIG, epochs=60, loss=LossConfig(one_random_step=True))
    _, history = train(create(jax.random.key(1)), episodes, config, jax.random.key(2))
    assert history.loss[-10:].mean() < history.loss[:10].mean()


def test_the_gradient_of_the_recurrence_is_that_of_its_steps():
    keys = jax.random.split(jax.random.key(0), 5)
    cell = {
        name: {
            "kernel": 0.5 * jax.random.normal(kernel, (rows, 20)),
            "bias": jax.random.normal(bias, (20,)),
        }
        for name, rows, kernel, bias in (("hidden", 5, *keys[:2]), ("input", 4, *keys[2:4]))
    }
    inputs = jax.random.normal(keys[4], (7, 3, 4))

    def by_steps(cell, inputs):
        zero = jax.numpy.zeros((3, 5))
        carry, states = (zero, zero), []
        for x in inputs:
            carry = lstm_cell(cell, carry, x)
            states.append(carry[0])
        return jax.numpy.stack(states)

    ours, plain = (
        jax.value_and_grad(lambda c, x, f=f: (f(c, x) ** 3).sum(), argnums=(0, 1))(cell, inputs)
        for f in (recurrence, by_steps)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, plain)


@pytest.mark.parametrize("group", [1, 4, 100])
def test_the_gradient_by_groups_is_that_of_the_batch(episodes, group):
    part = episodes.take(np.arange(10))
    features, mask, success = map(jax.numpy.asarray, (part.features, part.mask, part.success))
    config = LossConfig(time_weight=True)
    weights = class_weights(success, config)
    whole, grouped = (
        loss_and_gradient(
            create(jax.random.key(0)),
            (features, mask, success),
            weights,
            config,
            1e-2,
            jax.random.key(1),
            size,
        )
        for size in (None, group)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grouped, whole
    )


def test_another_rate_weight_or_number_of_epochs_does_not_recompile(episodes):
    def run(epochs, rate, l2):
        config = TrainConfig(epochs=epochs, learning_rate=rate, loss=LossConfig(l2=l2))
        train(create(jax.random.key(1)), episodes, config, jax.random.key(2))

    run(_EPOCHS_A_CALL, 1e-3, 1e-2)
    before = _run_epochs._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    run(3 * _EPOCHS_A_CALL, 3e-3, 0.0)
    after = _run_epochs._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    assert after == before
