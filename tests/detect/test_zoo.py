"""Detectors that read token statistics, sampled actions, or learn a density."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect import (
    DETECTORS,
    Detector,
    Provenance,
    fit_detector,
    load_detector,
    save_detector,
    score_episodes,
)
from mistjax.detect.methods.combinators import Agreement, Windowed
from mistjax.detect.methods.controls import TrajectoryLength
from mistjax.detect.methods.samples.action_samples import (
    ActionVariance,
    ChunkLayout,
    ward_cluster_sizes,
)
from mistjax.detect.methods.samples.consistency import TemporalConsistency, squared_mmd
from mistjax.detect.methods.sensitivity import directional_sensitivity
from mistjax.detect.metrics import summary
from mistjax.detect.pooling import pool

LAYOUT = ChunkLayout(samples=4, horizon=3, dim=7)
TINY_UNET = {"channels": (8, 8), "step_dim": 8, "epochs": 3, "batch_size": 64}
CONFIG = {
    "cluster_entropy": {"layout": LAYOUT, "threshold": 1.0},
    "stac": {"layout": LAYOUT, "executed": 1},
    "ace": {"layout": LAYOUT, "factor": 0.5},
    "rnd": {"action_dim": 7, "chunk": 21, **TINY_UNET},
    "logpzo": {"width": 8, **TINY_UNET},
    "rnd_oe": {"target_widths": (8, 4), "predictor_widths": (8, 8, 4), "epochs": 3},
    "fiper": {
        "layout": LAYOUT,
        "target_widths": (8, 4),
        "predictor_widths": (8, 8, 4),
        "epochs": 3,
    },
} | {
    f"action_{g}_var": {"layout": LAYOUT}
    for g in ("total", "general", "translation", "rotation", "gripper")
}
ON_HIDDEN_STATES = {"safe_mlp", "safe_lstm", "mahalanobis", "euclid_knn", "cosine_knn"}
ON_HIDDEN_STATES |= {"pca_kmeans", "trajectory_length", "shuffled_labels"}
REST = sorted(set(DETECTORS) - ON_HIDDEN_STATES)
PROVENANCE = Provenance("p", "t", "mean")


def inputs_for(name, episodes):
    """Positive features of the width a detector expects, twice as widely spread on failures."""
    width = {"sensitivity_gate": 1, "fiper": 84 + 8}.get(name)
    if width is None:
        width = 84 if name in CONFIG and "layout" in CONFIG[name] else 28
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.1, 0.5, (*episodes.mask.shape, width)).astype(np.float32)
    spread = np.where(episodes.success, 1, 2)[:, None, None]
    return dataclasses.replace(episodes, features=noise * spread)


def marked(name):
    """The U-Nets take long to compile."""
    return pytest.param(name, marks=[pytest.mark.slow] if name in ("rnd", "logpzo") else [])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [marked(name) for name in REST])
def test_every_other_detector_fits_steps_scores_and_survives_the_disk(name, episodes, tmp_path):
    data = inputs_for(name, episodes).take(np.arange(24))
    detector = fit_detector(name, data, **CONFIG.get(name, {}))
    assert isinstance(detector, Detector)
    scores = score_episodes(detector, data.features, data.mask)
    assert np.isfinite(scores).all()
    x = jnp.asarray(data.features[:2, 0])
    state = detector.init_state(2)
    gradient = jax.jit(jax.grad(lambda x: detector.logit(state, x).sum()))(x)
    assert np.isfinite(gradient).all()
    save_detector(tmp_path, detector, PROVENANCE)
    loaded, _ = load_detector(tmp_path, PROVENANCE)
    assert jax.tree.structure(loaded) == jax.tree.structure(detector)
    np.testing.assert_array_equal(score_episodes(loaded, data.features, data.mask), scores)


@pytest.mark.parametrize("name", ["action_total_var", "stac", "ace", "avg_token_entropy"])
def test_a_wider_spread_scores_higher(name, episodes):
    data = inputs_for(name, episodes)
    detector = fit_detector(name, data.take(data.success), **CONFIG.get(name, {}))
    assert summary(score_episodes(detector, data.features, data.mask), data)["roc_auc"] > 0.9


def test_action_groups_add_up_to_the_total():
    x = jax.random.normal(jax.random.key(0), (5, 84))
    total, *parts = (
        ActionVariance(LAYOUT, g).logit(None, x)
        for g in ("total", "translation", "rotation", "gripper")
    )
    np.testing.assert_allclose(total, sum(parts), rtol=1e-5)


def test_ward_clusters_find_separate_groups():
    points = jnp.array([[0.0], [0.1], [10.0], [10.1], [20.0]])
    assert sorted(ward_cluster_sizes(points, 1.0).tolist()) == [0, 0, 1, 2, 2]
    assert sorted(ward_cluster_sizes(points, 1e9).tolist()) == [0, 0, 0, 0, 5]


def test_identical_samples_have_no_discrepancy():
    x = jax.random.normal(jax.random.key(0), (6, 3))
    np.testing.assert_allclose(squared_mmd(x, x, 1.0), 0.0, atol=1e-6)


def test_a_plan_that_is_followed_is_temporally_consistent():
    detector = TemporalConsistency(ChunkLayout(1, 4, 1), executed=2)
    plan = jnp.arange(8.0)
    chunks = jnp.stack([plan[0:4], plan[2:6], plan[4:8]])[None]
    scores = score_episodes(detector, chunks, jnp.ones((1, 3), bool))
    np.testing.assert_allclose(scores, 0.0, atol=1e-6)


def test_chunks_without_overlap_are_refused():
    with pytest.raises(ValueError, match="overlap"):
        TemporalConsistency(ChunkLayout(1, 4, 1), executed=4)


def test_features_of_the_wrong_size_are_named():
    with pytest.raises(ValueError, match="expected 84 features"):
        ActionVariance(LAYOUT).logit(None, jnp.zeros((1, 83)))


def test_agreement_needs_all_or_any():
    length = Windowed(TrajectoryLength(), window=1)
    limits = (jnp.array([1.5]), jnp.array([3.5]))
    x, mask = jnp.zeros((1, 5, 2)), jnp.ones((1, 5), bool)
    both, either = (
        score_episodes(Agreement((length, length), limits, (1, 1), need), x, mask)[0] > 1
        for need in ("all", "any")
    )
    np.testing.assert_array_equal(both, [False, False, False, True, True])
    np.testing.assert_array_equal(either, [False, True, True, True, True])


def test_a_window_forgets():
    scores = score_episodes(
        Windowed(TrajectoryLength(), window=2), jnp.zeros((1, 4, 1)), jnp.ones((1, 4), bool)
    )
    np.testing.assert_allclose(scores[0], [1, 3, 5, 7], atol=1e-5)


def test_sensitivity_of_a_linear_field_is_the_norm_of_its_matrix_times_the_direction():
    a = jax.random.normal(jax.random.key(0), (3, 3))
    u = jnp.array([[0.0, 2.0, 0.0]])
    value = directional_sensitivity(lambda x: x @ a.T, jnp.ones((1, 3)), u)
    np.testing.assert_allclose(value, jnp.linalg.norm(a[:, 1])[None], rtol=1e-5)


@pytest.mark.parametrize("command", ["1.5", "median", "concat-1", "concat-x", "-0.1"])
def test_an_unknown_pooling_is_refused(command):
    with pytest.raises(ValueError, match="unknown pooling"):
        pool(jnp.zeros((2, 3)), command)
