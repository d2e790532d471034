import numpy as np
import pytest

from mistjax.detect.calibration.martingale import ExchangeabilityMonitor


def run(shift, n, seed):
    rng = np.random.default_rng(seed)
    monitor = ExchangeabilityMonitor(rng.normal(size=50), delta=0.05, seed=seed)
    for value in rng.normal(shift, 1, n):
        monitor = monitor.update(float(value))
    return monitor


def test_exchangeable_episodes_are_rarely_called_stale():
    assert np.mean([run(0.0, 60, seed).stale for seed in range(60)]) <= 0.05 + 2.6 * 0.028


def test_drifted_episodes_are_called_stale_and_stay_so():
    drifted = run(2.0, 60, 0)
    assert drifted.stale and "stale" in drifted.describe()
    for _ in range(20):
        drifted = drifted.update(0.0)
    assert drifted.stale


def test_an_update_leaves_the_old_monitor_alone():
    monitor = ExchangeabilityMonitor(np.arange(5.0))
    monitor.update(9.0)
    assert monitor.wealth == pytest.approx(1.0) and len(monitor.values) == 5
    with pytest.raises(ValueError, match="NaN"):
        monitor.update(float("nan"))
