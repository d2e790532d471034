"""Sparse features in front of a detector."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect import Artifact, Input, fit_detector, load_detector, save_detector
from mistjax.detect.detector import score_episodes
from mistjax.detect.methods.sparse import SparseCoded, SparseCoder, coded

TAP = "action.resid@-1/action/tokens"


@pytest.fixture(scope="module")
def coder():
    """Each of four dimensions up and down; a token is written by its two largest."""
    both = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
    return SparseCoder(both.T, jnp.zeros(8), both, jnp.zeros(4), k=2)


def test_a_feature_of_an_inference_is_its_mean_over_the_tokens(coder):
    tokens = jnp.array([[3.0, -2.0, 1.0, 0.0], [1.0, 0.0, 0.0, -4.0]])
    np.testing.assert_allclose(
        coder.summary(tokens.reshape(1, -1)), [[2.0, 0, 0, 0, 0, 1.0, 0, 2.0]]
    )


def test_a_detector_reads_the_features_live_as_in_training(coder, episodes, tmp_path):
    """Eight numbers of an inference are two tokens of four."""
    seen = coded(episodes, coder)
    assert seen.features.shape == episodes.features.shape
    assert not seen.features[~np.asarray(episodes.mask)].any()
    inner = fit_detector("linear_probe", seen, standardised=True)
    expected = score_episodes(inner, seen.features, seen.mask)
    reads = Input(features=(TAP,), pool="concat")
    save_detector(tmp_path, Artifact(SparseCoded(inner, coder), "policy", reads))
    found = load_detector(tmp_path, "policy").detector
    assert found.coder.k == 2
    scores = score_episodes(found, episodes.features, episodes.mask)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    other = SparseCoded(inner, dataclasses.replace(coder, k=1))
    assert np.abs(score_episodes(other, episodes.features, episodes.mask) - expected).max() > 0.1
