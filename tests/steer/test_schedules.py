"""Schedules say how strongly to steer at each inference after the alarm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.steer import Schedule, constant

SINCE = jnp.array([-1, 0, 1, 2, 3, 500])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (constant(2.0), [0, 2, 2, 2, 2, 2]),
        (Schedule.of([0.5, 1.0, 1.5, 2.0]), [0, 0.5, 1, 1.5, 2, 2]),
        (Schedule.of([2.0, 2.0, 0.0]), [0, 2, 2, 0, 0, 0]),
    ],
    ids=["constant", "rising", "ending"],
)
def test_strength_follows_the_schedule_and_is_0_before_the_alarm(schedule, expected):
    np.testing.assert_allclose(schedule.at(SINCE), expected)


def test_another_schedule_does_not_recompile():
    traces = []

    @jax.jit
    def at(schedule, since):
        traces.append(None)
        return schedule.at(since)

    for schedule in (constant(1.0), constant(2.0), Schedule.of(np.linspace(0, 1, 64))):
        at(schedule, jnp.array([0, 4]))
    assert len(traces) == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
def test_strengths_that_are_not_finite_are_refused(wrong):
    with pytest.raises(ValueError, match="all finite"):
        constant(wrong)
    with pytest.raises(ValueError, match="all finite"):
        Schedule.of([1.0, wrong])


def test_a_schedule_of_no_inference_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Schedule.of([])
