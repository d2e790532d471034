import numpy as np
import pytest
from scipy import stats

from mistjax.detect.metrics import (
    alarm_rates,
    detection_latency,
    first_alarm,
    peak,
    relative_detection_time,
    roc_auc,
    time_weighted_accuracy,
)
from mistjax.stats import bootstrap, holm, mcnemar, wilson

ALARMS = np.array([[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)


def test_the_first_alarm_counts_and_none_is_minus_one():
    np.testing.assert_array_equal(first_alarm(ALARMS), [2, -1, 0])
    np.testing.assert_allclose(relative_detection_time(ALARMS, np.full(3, 4)), [0.5, 1.0, 0.0])


def test_latency_ignores_alarms_before_the_onset():
    latency = detection_latency(ALARMS, np.array([1, 1, 2]))
    np.testing.assert_array_equal(latency, [1, np.inf, np.inf])
    assert np.isnan(detection_latency(ALARMS[:1], np.array([-1])))


def test_peak_looks_no_further_than_the_stop():
    assert peak(np.array([[1.0, 5.0, 9.0]]), np.array([2])) == 5.0


def test_one_class_has_no_auc():
    assert np.isnan(roc_auc(np.arange(3.0), np.zeros(3, bool)))


def test_rates_of_a_perfect_alarm():
    failed = np.array([True, False, True])
    rates = alarm_rates(failed, failed)
    assert rates["bal_acc"] == rates["f1"] == rates["acc"] == 1.0


def test_time_weighted_accuracy_rewards_early_detection():
    failed = np.array([True, False])
    early = np.array([[1, 0, 0], [0, 0, 0]], bool)
    late = np.array([[0, 0, 1], [0, 0, 0]], bool)
    assert time_weighted_accuracy(early, failed, 3) == 1.0
    assert time_weighted_accuracy(late, failed, 3) == 0.5


def test_wilson_covers_and_survives_no_data():
    low, high = wilson(45, 50)
    assert low < 0.9 < high < 1
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10).low == pytest.approx(0.0, abs=1e-12)


def test_holm_corrects_each_test_for_those_that_are_still_in_question():
    corrected = holm({"a": 0.04, "b": 0.01, "c": 0.02, "d": 0.5})
    assert corrected == pytest.approx({"a": 0.08, "b": 0.04, "c": 0.06, "d": 0.5})
    assert holm({"a": 0.3, "b": 0.9}) == pytest.approx({"a": 0.6, "b": 0.9})
    assert holm({"a": 0.02, "b": 0.019}) == pytest.approx({"a": 0.038, "b": 0.038})
    assert holm({}) == {}


def test_mcnemar_looks_at_disagreements_only():
    a = np.array([True] * 9 + [False] + [True] * 90)
    b = np.array([False] * 9 + [True] + [True] * 90)
    assert mcnemar(a, b) == pytest.approx(2 * stats.binom.cdf(1, 10, 0.5))
    assert mcnemar(a, a) == 1.0
    with pytest.raises(ValueError, match="paired"):
        mcnemar(a, b[:-1])


def test_the_bootstrap_interval_contains_the_estimate():
    x = np.random.default_rng(0).normal(size=200)
    low, high = bootstrap(lambda i: float(x[i].mean()), 200, draws=200)
    assert low < x.mean() < high
