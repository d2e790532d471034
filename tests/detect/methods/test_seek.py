"""Hide-and-Seek's margins, windows, and contrast sets without near-duplicates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect import fit_detector, score_episodes
from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.combinators import Pooled, pooled
from mistjax.detect.methods.contrast import distinct, warped_distance
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.detect.methods.safe.losses import SeekConfig, seek_loss
from mistjax.detect.methods.samples.flow import VelocityDisagreement
from mistjax.detect.registry import training_config


def test_the_margins_by_hand():
    scores = jnp.array([[0.1, 0.2, 0.9, 0.7], [0.3, 0.6, 0.9, 0.9], [0.2, 0.2, 0.1, 0.0]])
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    success = jnp.array([False, True, True])
    between = ((1 - (0.9 - 0.6)) + (1 - (0.9 - 0.2))) / 2
    assert seek_loss(scores, mask, success, SeekConfig(weight=0)) == pytest.approx(between)
    within = 0.8 - ((0.9 + 0.7) / 2 - 0.15)
    found = seek_loss(scores, mask, success, SeekConfig(within=0.8, weight=2))
    assert found == pytest.approx(between + 2 * within, rel=1e-5)


@pytest.mark.parametrize("success", [[True, True], [False, False]])
def test_a_batch_of_one_class_has_a_finite_loss_and_gradient(success):
    mask = jnp.array([[True, True], [True, False]])
    value, slope = jax.value_and_grad(seek_loss)(
        jnp.array([[0.2, 0.4], [0.5, 0.0]]), mask, jnp.array(success), SeekConfig()
    )
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_windows_are_read_as_their_mean_and_hold_their_score(episodes):
    head = SafeMLP.create(jax.random.key(0), episodes.dim, hidden=4, accumulate="none")
    scores = score_episodes(Pooled(head, 3, episodes.dim), episodes.features, episodes.mask)
    inner = np.asarray(head.sequence(jnp.asarray(pooled(episodes, 3).features)))
    assert not scores[:, :2].any()
    for row in range(3):
        np.testing.assert_allclose(scores[row, 2:5], inner[row, 0], rtol=1e-5)
        np.testing.assert_allclose(scores[row, 5:8], inner[row, 1], rtol=1e-5)


def test_a_straight_flow_has_no_disagreement_and_a_turning_one_has():
    layout = ChunkLayout(5, 2, 3)
    straight = jnp.tile(jnp.arange(1.0, 7.0), 5)
    turning = straight.reshape(5, 6) * jnp.array([1.0, -1, 1, -1, 1])[:, None]
    found = VelocityDisagreement(layout).logit(None, jnp.stack([straight, turning.ravel()]))
    assert found[0] < 1e-5 and found[1] > 0.5


def test_warping_forgives_another_tempo():
    slow = np.repeat(np.arange(8.0), 2)[:, None]
    quick = np.concatenate([np.arange(8.0), np.full(8, 7.0)])[:, None]
    apart = warped_distance(slow, np.stack([slow, quick, slow + 3]))
    assert apart[0] == apart[1] == 0 and apart[2] > 1


def test_near_duplicates_are_left_out_and_the_probe_is_of_the_rest(episodes):
    twice = jax.tree.map(lambda x: np.concatenate([x[:20], x[:20]]), episodes)
    jitter = np.random.default_rng(0).normal(0, 1e-3, twice.features.shape).astype(np.float32)
    twice = dataclasses.replace(twice, features=twice.features + jitter * twice.mask[..., None])
    np.testing.assert_array_equal(distinct(twice, 0.1), np.arange(20))
    assert len(distinct(twice, 0)) == 40
    options = {"hidden": 4, "training": training_config("safe_mlp", epochs=2)}
    probe = fit_detector("contrast_probe", twice, limit=0.1, **options)
    plain = fit_detector("safe_mlp", twice.take(np.arange(20)), **options)
    np.testing.assert_array_equal(probe.layers[0]["kernel"], plain.layers[0]["kernel"])
    with pytest.raises(ValueError, match="share of the median"):
        distinct(episodes, -1)
