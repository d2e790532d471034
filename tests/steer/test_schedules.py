"""Schedules say how strongly to steer at each inference after the alarm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.steer import Schedule, burst, constant, decay, ramp

SINCE = jnp.array([-1, 0, 1, 2, 3, 500])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(2.0), [0, 2, 2, 2, 2, 2]),
        (ramp(2.0, 4), [0, 0.5, 1, 1.5, 2, 2]),
        (decay(2.0, 1.0), [0, 2, 1, 0.5, 0.25, 0]),
        (burst(2.0, 2), [0, 2, 2, 0, 0, 0]),
    ],
    ids=["constant", "ramp", "decay", "burst"],
)
def test_strength_follows_the_schedule_and_is_0_before_the_alarm(schedule, expected):
    np.testing.assert_allclose(schedule.at(SINCE), expected)


def test_another_schedule_does_not_recompile():
    traces = []

    @jax.jit
    def at(schedule, since):
        traces.append(None)
        return schedule.at(since)

    for schedule in (constant(1.0), ramp(3.0, 5), decay(1.0, 2.0), burst(1.0, 3)):
        at(schedule, jnp.array([0, 4]))
    assert len(traces) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ramp(1.0, 0),
        lambda: burst(1.0, 64),
        lambda: decay(1.0, 0.0),
    ],
)
def test_impossible_spans_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        wrong()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
def test_strengths_that_are_not_finite_are_refused(wrong):
    for make in (constant, lambda s: ramp(s, 2), lambda s: decay(s, 2.0), lambda s: burst(s, 2)):
        with pytest.raises(ValueError, match="all finite"):
            make(wrong)
    with pytest.raises(ValueError, match="all finite"):
        Schedule.of([1.0, wrong])
    with pytest.raises(ValueError, match="half_life"):
        decay(1.0, np.nan)


def test_a_schedule_of_no_inference_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Schedule.of([])
    with pytest.raises(ValueError, match="horizon is 0"):
        constant(1.0, horizon=0)
