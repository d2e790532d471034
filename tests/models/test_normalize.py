"""Normalisation follows openpi's formulas, inverts exactly and refuses what does not fit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.normalize import (
    NormStats,
    Quantile,
    ZScore,
    load_norm_stats,
    pad_to,
    save_norm_stats,
)

STATS = NormStats(
    mean=np.array([1.0, -2.0, 0.5], np.float32),
    std=np.array([2.0, 0.5, 0.0], np.float32),
    q01=np.array([-3.0, -3.0, 0.5], np.float32),
    q99=np.array([5.0, -1.0, 0.5], np.float32),
)
METHODS = [ZScore(STATS), Quantile(STATS)]
X = np.array([[3.0, -1.5, 0.5], [1.0, -2.0, 0.5]], np.float32)


def test_zscore_is_distance_from_the_mean_in_standard_deviations():
    np.testing.assert_allclose(ZScore(STATS).normalize(X), [[1, 1, 0], [0, 0, 0]], atol=1e-5)


def test_quantile_maps_q01_to_minus_one_and_q99_to_one():
    low, high = Quantile(STATS).normalize(np.stack([STATS.q01, STATS.q99]))
    np.testing.assert_allclose(low, -1, atol=1e-5)
    np.testing.assert_allclose(high[:2], 1, atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_unnormalize_inverts_normalize_even_where_a_dimension_is_constant(method):
    np.testing.assert_allclose(method.unnormalize(method.normalize(X)), X, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_jit_and_numpy_agree_with_the_statistics_as_an_argument(method):
    inside = jax.jit(lambda m, x: m.normalize(x))(method, jnp.asarray(X))
    np.testing.assert_allclose(inside, method.normalize(X), rtol=1e-5)


def test_statistics_wider_than_the_robot_are_cut():
    np.testing.assert_array_equal(
        ZScore(STATS).normalize(X[:, :2]), ZScore(STATS).normalize(X)[:, :2]
    )


def test_arrays_wider_than_the_statistics_are_refused():
    with pytest.raises(ValueError, match="cover 3 dimensions"):
        ZScore(STATS).normalize(np.zeros((2, 4), np.float32))


def test_quantile_without_quantiles_is_refused():
    with pytest.raises(ValueError, match="no quantiles"):
        Quantile(NormStats(STATS.mean, STATS.std)).normalize(X)


def test_statistics_of_data_are_over_all_axes_but_the_last():
    data = np.random.default_rng(0).normal(size=(5, 40, 3)).astype(np.float32)
    stats = NormStats.of(data)
    flat = data.reshape(-1, 3)
    np.testing.assert_allclose(stats.mean, flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats.std, flat.std(0), atol=1e-6)
    np.testing.assert_allclose(stats.q99, np.percentile(flat, 99, axis=0), atol=1e-6)


@pytest.mark.parametrize("array", [X, jnp.asarray(X)], ids=["numpy", "jax"])
def test_pad_to_appends_zeros_keeps_the_kind_and_cutting_back_restores(array):
    padded = pad_to(array, 7)
    assert padded.shape == (2, 7) and not padded[:, 3:].any()
    assert isinstance(padded, jax.Array) == isinstance(array, jax.Array)
    np.testing.assert_array_equal(pad_to(padded, 3), array)


def test_the_file_round_trips_and_is_openpis(tmp_path):
    path = tmp_path / "norm_stats.json"
    partial = NormStats(STATS.mean, STATS.std)
    save_norm_stats(path, {"state": STATS, "actions": partial})
    content = json.loads(path.read_text())
    assert content["norm_stats"]["state"]["q01"] == [-3.0, -3.0, 0.5]
    loaded = load_norm_stats(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, {"state": STATS, "actions": partial})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": {}}, "expected"),
        ({"norm_stats": {"state": {"mean": [0.0]}}}, r"state lacks \['std'\]"),
        ({"norm_stats": {"state": {"mean": [0.0], "std": [1.0, 1.0]}}}, "one number per dimension"),
        ({"norm_stats": {"state": [0.0]}}, r"state is \[0.0\]"),
        ({"norm_stats": {"state": {"mean": [], "std": []}}}, "one number per dimension"),
        ({"norm_stats": {"state": {"mean": [[0]], "std": [[1]]}}}, "one number per dimension"),
        ({"norm_stats": {"state": {"mean": ["a"], "std": [1]}}}, "state.mean holds something"),
        ({"norm_stats": {"state": {"mean": [0, None], "std": [1, 1]}}}, "state.mean holds some"),
        ({"norm_stats": {"state": {"mean": [0, 1e300], "std": [1, 1]}}}, r"in mean, .*\[1\]"),
        ({"norm_stats": {"state": {"mean": [0, 0], "std": [1, -1]}}}, r"negative std, .*\[1\]"),
        ({"norm_stats": {"state": {"mean": [0], "std": [1], "q01": [0]}}}, "one of q01 and q99"),
        (
            {"norm_stats": {"state": {"mean": [0], "std": [1], "q01": [1], "q99": [0]}}},
            r"q01 above q99, dimension \[0\]",
        ),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "norm_stats.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_norm_stats(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_json_does_not_know_is_refused_by_file(tmp_path, number):
    path = tmp_path / "norm_stats.json"
    path.write_text('{"norm_stats": {"state": {"mean": [X], "std": [1]}}}'.replace("X", number))
    with pytest.raises(ValueError, match=r"norm_stats\.json.*not a finite number"):
        load_norm_stats(path)


def test_data_and_statistics_without_numbers_are_refused(tmp_path):
    data = np.array([[0.0, np.nan], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"NaN or Inf in dimension \[1\]"):
        NormStats.of(data)
    with pytest.raises(ValueError, match="no values"):
        NormStats.of(data[:0])
    with pytest.raises(ValueError, match="actions has a negative std"):
        save_norm_stats(tmp_path / "x.json", {"actions": NormStats(STATS.mean, -STATS.std)})
    assert not (tmp_path / "x.json").exists()
