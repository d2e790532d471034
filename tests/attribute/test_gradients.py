"""Integrated gradients through a whole pi0, from the detector's score back to pixels."""

import jax
import numpy as np
import pytest

from mistjax.attribute import FailureScore, attribute
from mistjax.attribute.gradients import QUADRATURES
from mistjax.detect.inputs import Input
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.hooks import Tap


@pytest.fixture(scope="module")
def score(pi):
    """A linear detector on pooled activations of the action expert: a smooth readout."""
    features = Input.of_taps(Tap("action.resid", (-1,), "action", "mean"))
    detector = SafeMLP.create(jax.random.key(5), pi.spec.stacks["action"].width, n_layers=1)
    return FailureScore(detector, detector.init_state(2), features)


@pytest.fixture(scope="module")
def explained(pi, pi_obs, key, score):
    return attribute("integrated_gradients", pi, pi_obs, key, score, steps=64)


def test_integrated_gradients_of_the_failure_score_are_complete(explained):
    assert (abs(explained.value - explained.baseline_value) > 0.5).all()
    assert (explained.completeness_error < 0.01).all()


def test_the_explained_value_is_the_detectors(explained, pi, pi_obs, key, score):
    sample = pi.sample(pi_obs, key, taps=score.taps)
    expected = score.detector.logit(score.state, score.reads.live(sample))
    np.testing.assert_allclose(explained.value, expected, rtol=1e-4)


def test_an_absent_camera_and_padding_words_have_no_attribution(explained, pi_obs):
    base, wrist = pi_obs.images
    assert not explained.images[wrist][1].any()
    assert explained.images[wrist][0].all()
    assert explained.images[base].all()
    assert not explained.text[~pi_obs.tokenized_prompt_mask].any()
    assert explained.state.any(axis=1).all()


@pytest.mark.parametrize("name", QUADRATURES)
def test_quadratures_integrate(name):
    nodes, weights = QUADRATURES[name](32)
    assert weights.sum() == pytest.approx(1)
    assert (weights * nodes**2).sum() == pytest.approx(1 / 3, rel=1e-3)
