import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mistjax.detect.calibration.conformal import (
    CalibrationWarning,
    calibrate,
    calibrate_strata,
    conformal_quantile,
    coverage_law,
    finite_sample_rank,
    least_episodes,
)


def random_scores(rng, n, t=15):
    """Cumulative scores of successful episodes with different lengths and spreads."""
    lengths = rng.integers(5, t + 1, n)
    scores = np.cumsum(rng.normal(0.3, rng.uniform(0.5, 2, (n, 1)), (n, t)), axis=1)
    return scores, np.arange(t) < lengths[:, None]


def alarmed(threshold, scores, mask):
    """Whether each episode raises an alarm."""
    return np.asarray(threshold.alarms(jnp.asarray(scores, jnp.float32), jnp.asarray(mask)).any(1))


@pytest.mark.parametrize("band", ["constant", "stdev", "tfunc"])
@pytest.mark.parametrize("n", [10, 20, 50, 100])
def test_false_alarms_stay_within_alpha(n, band):
    alpha, trials, fresh = 0.2, 150, 40
    rng = np.random.default_rng(n)
    alarms = []
    for trial in range(trials):
        threshold = calibrate(
            *random_scores(rng, n), np.ones(n, bool), alpha, band=band, seed=trial
        )
        alarms.append(alarmed(threshold, *random_scores(rng, fresh)).mean())
    # episodes that share a calibration set are not independent: the error is over sets
    limit = alpha + 2.6 * np.std(alarms, ddof=1) / np.sqrt(trials)
    assert np.mean(alarms) <= limit


def test_realised_coverage_follows_the_beta_law():
    n, alpha, rng = 30, 0.1, np.random.default_rng(0)
    k = finite_sample_rank(n, alpha)
    coverage = [stats.norm.cdf(conformal_quantile(rng.normal(size=n), alpha)) for _ in range(500)]
    assert stats.kstest(coverage, stats.beta(k, n + 1 - k).cdf).pvalue > 0.01
    law = coverage_law(n, alpha)
    assert law.mean >= 1 - alpha
    assert np.mean([law.low <= c <= law.high for c in coverage]) == pytest.approx(0.9, abs=0.05)


def test_the_rank_is_not_fooled_by_floating_point():
    assert finite_sample_rank(9, 0.1) == 9
    assert finite_sample_rank(19, 0.05) == 19
    assert finite_sample_rank(8, 0.1) == 9
    with pytest.raises(ValueError, match="alpha"):
        finite_sample_rank(10, 0.0)


def test_too_few_episodes_give_an_infinite_threshold_that_says_so():
    scores, mask = random_scores(np.random.default_rng(0), 8)
    with pytest.warns(CalibrationWarning, match="at least 9"):
        threshold = calibrate(scores, mask, np.ones(8, bool), 0.1, band="constant")
    assert np.isposinf(threshold.upper).all()
    assert "too few" in threshold.describe()
    assert not alarmed(threshold, 1e30 * np.ones((1, 4)), np.ones((1, 4), bool)).any()


def test_a_score_that_is_not_a_number_always_alarms():
    scores, mask = random_scores(np.random.default_rng(0), 30)
    threshold = calibrate(scores, mask, np.ones(30, bool), 0.2)
    for score in (np.nan, np.inf, -np.inf):
        assert threshold.alarm(0, jnp.array(score))
    assert not threshold.alarm(0, threshold.upper[0])


def test_steps_after_the_calibrated_ones_use_the_last_limit():
    scores, mask = random_scores(np.random.default_rng(0), 30)
    threshold = calibrate(scores, mask, np.ones(30, bool), 0.2)
    assert threshold.at(jnp.array(1000)) == threshold.upper[-1]


def test_no_calibration_episode_beyond_the_rank_alarms():
    scores, mask = random_scores(np.random.default_rng(0), 40)
    reference = random_scores(np.random.default_rng(1), 20)
    threshold = calibrate(scores, mask, np.ones(40, bool), 0.2, reference=reference)
    assert threshold.n_calibration == 40
    assert alarmed(threshold, scores, mask).sum() <= 40 - threshold.rank


def test_failures_do_not_move_the_threshold():
    scores, mask = random_scores(np.random.default_rng(0), 40)
    good = np.arange(40) < 25
    louder = np.where(good[:, None], scores, scores + 100)
    a, b = (calibrate(s, mask, good, 0.2).upper for s in (scores, louder))
    np.testing.assert_array_equal(a, b)


def test_each_stratum_gets_its_own_threshold():
    scores, mask = random_scores(np.random.default_rng(0), 40)
    suite = np.arange(40) % 2
    scores = scores + 50.0 * suite[:, None]
    strata = calibrate_strata(scores, mask, np.ones(40, bool), suite, 0.2, band="constant")
    assert strata[1].upper[0] > strata[0].upper[0] + 20


def test_nothing_to_calibrate_on_is_an_error():
    scores, mask = random_scores(np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match="success"):
        calibrate(scores, mask, np.zeros(5, bool), 0.2)
    with pytest.raises(ValueError, match="finite"):
        calibrate(np.full_like(scores, np.nan), mask, np.ones(5, bool), 0.2)


@pytest.mark.parametrize(("n", "alpha", "confidence"), [(120, 0.1, 0.9), (600, 0.1, 0.95)])
def test_a_rank_with_confidence_keeps_the_bound_for_that_share_of_calibrations(
    n, alpha, confidence
):
    k = finite_sample_rank(n, alpha, confidence)
    assert stats.beta.sf(1 - alpha, k, n + 1 - k) >= confidence
    assert stats.beta.sf(1 - alpha, k - 1, n + 2 - k) < confidence
    assert k > finite_sample_rank(n, alpha)
    least = least_episodes(alpha, confidence)
    assert finite_sample_rank(least, alpha, confidence) == least
    assert finite_sample_rank(least - 1, alpha, confidence) > least - 1


def test_a_confidence_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="confidence"):
        finite_sample_rank(10, 0.1, 1.0)
