"""Every registered detector, and those that read tokens or actions in particular."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect import (
    DETECTORS,
    Artifact,
    Detector,
    Input,
    fit_detector,
    load_detector,
    save_detector,
    score_episodes,
)
from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.combinators import Agreement, Windowed
from mistjax.detect.methods.controls import TrajectoryLength
from mistjax.detect.methods.samples.action_samples import ActionVariance, ward_cluster_sizes
from mistjax.detect.methods.samples.consistency import TemporalConsistency, squared_mmd
from mistjax.detect.metrics import summary
from mistjax.detect.registry import training_config
from mistjax.hooks.pooling import pool

LAYOUT = ChunkLayout(samples=4, horizon=3, dim=7)
ONE = ChunkLayout(samples=1, horizon=3, dim=7)
TINY_UNET = {"channels": (8, 8), "step_dim": 8, "epochs": 3, "batch_size": 64}
HEAD = {"training": training_config("safe_mlp", epochs=3), "hidden": 8}
CONFIG = {
    **dict.fromkeys(("safe_mlp", "safe_lstm", "shuffled_labels", "contrast_probe", "guard"), HEAD),
    "hide_and_seek": {
        "training": training_config("hide_and_seek", epochs=3),
        "hidden": 8,
        "window": 2,
    },
    "velocity_disagreement": {"layout": LAYOUT},
    "pca_kmeans": {"dim": 4, "clusters": 4},
    "ensemble": {"members": [{"name": "linear_probe"}, {"name": "mahalanobis"}]},
    "cluster_entropy": {"layout": LAYOUT, "threshold": 1.0},
    "stac": {"layout": LAYOUT, "executed": 1},
    "ace": {"layout": LAYOUT, "factor": 0.5},
    "stac_single": {"layout": ONE, "executed": 1},
    "rnd": {"layout": ONE, **TINY_UNET},
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


def inputs_for(name, episodes):
    """Positive features of the width a detector expects, twice as widely spread on failures."""
    width = {"sensitivity_gate": 1, "fiper": 84 + 8}.get(name)
    if width is None:
        width = 84 if name in CONFIG and CONFIG[name].get("layout") == LAYOUT else 28
        width = 21 if name == "stac_single" else width
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.1, 0.5, (*episodes.mask.shape, width)).astype(np.float32)
    spread = np.where(episodes.success, 1, 2)[:, None, None]
    return dataclasses.replace(episodes, features=(noise * spread).astype(np.float32))


def marked(name):
    """The U-Nets take long to compile."""
    return pytest.param(name, marks=[pytest.mark.slow] if name in ("rnd", "logpzo") else [])


@pytest.fixture(scope="module", params=[marked(name) for name in DETECTORS])
def made(request, episodes):
    """(name, its training episodes, the detector)."""
    data = inputs_for(request.param, episodes).take(np.arange(24))
    return request.param, data, fit_detector(request.param, data, **CONFIG.get(request.param, {}))


@pytest.mark.timeout(1800)
def test_every_detector_scores_has_a_gradient_and_survives_the_disk(made, tmp_path):
    _, data, detector = made
    assert isinstance(detector, Detector)
    scores = score_episodes(detector, data.features, data.mask)
    assert np.isfinite(scores).all()
    x = jnp.asarray(data.features[:2, 0])
    state = detector.init_state(2)
    gradient = jax.jit(jax.grad(lambda x: detector.logit(state, x).sum()))(x)
    assert np.isfinite(gradient).all()
    save_detector(tmp_path, Artifact(detector, "p", Input(features=("t",))))
    loaded = load_detector(tmp_path, "p").detector
    assert jax.tree.structure(loaded) == jax.tree.structure(detector)
    np.testing.assert_array_equal(score_episodes(loaded, data.features, data.mask), scores)


@pytest.mark.timeout(1800)
def test_a_broken_inference_alarms_once_whatever_the_detector_makes_of_it(made):
    """And the later scores are those of an episode without it."""
    _, data, detector = made
    whole = np.asarray(data.features)[:3, :7]
    without = score_episodes(detector, np.delete(whole, 2, axis=1), np.ones((3, 6), bool))
    for number, value in enumerate((np.nan, np.inf, -np.inf)):
        broken = whole.copy()
        broken[number, 2, -1] = value
        scores = score_episodes(detector, broken, np.ones((3, 7), bool))
        assert np.isposinf(scores[number, 2]) and np.isinf(scores).sum() == 1
        kept = np.delete(np.asarray(scores), 2, axis=1)[number]
        np.testing.assert_allclose(kept, without[number], rtol=1e-5)


@pytest.mark.timeout(1800)
def test_scores_do_not_depend_on_the_x64_flag(made):
    name, data, detector = made
    scores = score_episodes(detector, data.features, data.mask)
    with jax.enable_x64(True):
        again = fit_detector(name, data, **CONFIG.get(name, {}))
        leaves = jax.tree.leaves(again)
        assert all(leaf.dtype != jnp.float64 for leaf in leaves if hasattr(leaf, "dtype"))
        wide = score_episodes(again, data.features, data.mask)
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(scores, wide, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize(
    "command",
    ["1.5", "median", "concat-1", "concat-x", "-0.1", "nan", "", "concat-::0", "concat-1:2:3:4"],
)
def test_an_unknown_pooling_is_refused(command):
    with pytest.raises(ValueError, match="unknown pooling"):
        pool(jnp.zeros((2, 3)), command)
