import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect import DETECTORS, Detector, fit_detector, score_episodes
from mistjax.detect.methods.safe.heads import SafeLSTM, SafeMLP
from mistjax.detect.metrics import peak, roc_auc, summary
from mistjax.detect.registry import training_config

BRIEF = {
    "safe_mlp": {"training": training_config("safe_mlp", epochs=60), "hidden": 16},
    "safe_lstm": {
        "training": training_config("safe_lstm", epochs=40, learning_rate=1e-2),
        "hidden": 8,
    },
    "euclid_knn": {"k": 3},
    "cosine_knn": {"k": 3},
    "pca_kmeans": {"dim": 4, "clusters": 4},
    "shuffled_labels": {"training": training_config("safe_mlp", epochs=5), "hidden": 8},
}
HIDDEN_STATE_DETECTORS = (
    "safe_mlp",
    "safe_lstm",
    "mahalanobis",
    "euclid_knn",
    "cosine_knn",
    "pca_kmeans",
    "trajectory_length",
    "shuffled_labels",
)


@pytest.fixture(scope="module", params=HIDDEN_STATE_DETECTORS)
def fitted(request, episodes):
    return request.param, fit_detector(request.param, episodes, **BRIEF.get(request.param, {}))


def test_every_detector_satisfies_the_protocol_and_is_a_pytree(fitted, episodes):
    _, detector = fitted
    assert isinstance(detector, Detector)
    leaves, treedef = jax.tree.flatten(detector)
    assert type(jax.tree.unflatten(treedef, leaves)) is type(detector)
    state = detector.init_state(3)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(state))
    x = jnp.asarray(episodes.features[:3, 0])
    state, score = jax.jit(lambda d, s, x: d.step(s, x))(detector, state, x)
    assert score.shape == (3,)
    gradient = jax.grad(lambda x: detector.logit(state, x).sum())(x)
    assert np.isfinite(gradient).all()


def test_a_batch_is_scored_as_its_episodes_would_be_alone(fitted, fresh_episodes):
    _, detector = fitted
    some = fresh_episodes.take(np.arange(4))
    together = score_episodes(detector, some.features, some.mask)
    for i in range(4):
        one = some.take(slice(i, i + 1))
        np.testing.assert_allclose(
            score_episodes(detector, one.features, one.mask)[0], together[i], rtol=2e-5, atol=2e-5
        )


def test_padding_never_changes_a_score(fitted, fresh_episodes):
    _, detector = fitted
    some = fresh_episodes.take(np.arange(4))
    poisoned = np.where(some.mask[..., None], some.features, 1e6).astype(np.float32)
    np.testing.assert_array_equal(
        score_episodes(detector, some.features, some.mask),
        score_episodes(detector, poisoned, some.mask),
    )


def test_detectors_that_read_features_find_fresh_failures_and_controls_do_not(
    fitted, fresh_episodes
):
    name, detector = fitted
    scores = score_episodes(detector, fresh_episodes.features, fresh_episodes.mask)
    auc = summary(scores, fresh_episodes)["roc_auc"]
    if name in ("trajectory_length", "shuffled_labels"):
        assert auc < 0.7
    else:
        assert auc > 0.7


def test_trajectory_length_is_blind_by_earliest_stop_within_a_task(episodes):
    scores = score_episodes(
        fit_detector("trajectory_length", episodes), episodes.features, episodes.mask
    )
    task = episodes.take(episodes.task_id == 0)
    assert roc_auc(peak(scores[episodes.task_id == 0], task.earliest_stop), ~task.success) == 0.5


@pytest.mark.parametrize(
    "head",
    [
        SafeMLP.create(jax.random.key(0), 8, hidden=5, n_layers=3, accumulate="mean"),
        SafeMLP.create(jax.random.key(0), 8, n_layers=1, accumulate="none", output="none"),
        SafeLSTM.create(jax.random.key(0), 8, hidden=5, n_layers=2, accumulate="sum"),
        SafeLSTM.create(jax.random.key(0), 8, hidden=5, n_history=3, weight_scale=2.0),
    ],
    ids=["mlp_mean", "linear", "lstm_two_layers_sum", "lstm_window"],
)
def test_stepping_through_an_episode_equals_the_training_pass(head, episodes):
    stepped = score_episodes(head, episodes.features, episodes.mask)
    trained_on = head.sequence(jnp.asarray(episodes.features))
    valid = episodes.mask
    np.testing.assert_allclose(
        np.asarray(stepped)[valid], np.asarray(trained_on)[valid], rtol=1e-5, atol=1e-5
    )


def test_a_standardised_detector_ignores_the_units_of_its_features(episodes, fresh_episodes):
    scaled = [e.replace(features=e.features * 1000.0) for e in (episodes, fresh_episodes)]
    plain, rescaled = (
        score_episodes(
            fit_detector("euclid_knn", train, standardised=True), test.features, test.mask
        )
        for train, test in ((episodes, fresh_episodes), scaled)
    )
    np.testing.assert_allclose(plain, rescaled, rtol=1e-3, atol=1e-3)


def test_an_unknown_name_lists_the_known_ones(episodes):
    with pytest.raises(ValueError, match="safe_mlp"):
        fit_detector("safe-mlp", episodes)
    with pytest.raises(TypeError):
        fit_detector("mahalanobis", episodes, topk=3)


def test_one_class_only_is_refused_with_a_way_out(episodes):
    successes = episodes.take(episodes.success)
    with pytest.raises(ValueError, match="successes and failures"):
        fit_detector("safe_mlp", successes)
    with pytest.raises(ValueError, match="success_only"):
        fit_detector("mahalanobis", successes)
    one_class = fit_detector("mahalanobis", successes, success_only=True)
    assert one_class.to_failure is None


def test_the_registry_names_every_detector_once():
    assert set(HIDDEN_STATE_DETECTORS) <= set(DETECTORS)
