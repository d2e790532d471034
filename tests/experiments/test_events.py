"""Events over time, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.events import Scored, detection, earliest_auc, failure, together
from mistjax.detect import Threshold


def scored(rows, onsets, steps=4):
    """Rows of scores of any length."""
    mask = np.arange(max(map(len, rows))) < np.array([len(r) for r in rows])[:, None]
    padded = np.stack([np.pad(r, (0, mask.shape[1] - len(r))) for r in rows]).astype(float)
    return Scored(padded, mask, np.array(onsets), steps)


LIMIT = Threshold(jnp.array([0.5]), 0.1, 10, 10)
CLEAN = scored([[0, 0.1, 0.2, 0.3], [0.2, 0.1, 0, 0, 0.9]], [-1, -1])


def test_latency_counts_control_steps_from_the_onset():
    """Onset at step 5: look 2 is the first that can show it."""
    faulty = scored([[0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0], [1]], [5, 5, 5, 5, 6])
    found = detection(faulty, CLEAN, LIMIT)
    assert found["n"] == 4, "the last ended before its onset"
    assert (found["early"], found["missed"], found["within_10_steps"]) == (1, 1, 1)
    assert found["median_latency_steps"] == ((8 - 5) + (20 - 5)) / 2


def test_a_clock_tells_nothing_from_scores_of_the_same_look():
    rows = [np.arange(n) for n in (4, 9, 12, 6)]
    found = detection(scored(rows, [0, 4, 8, 0]), scored(rows, [-1] * 4), LIMIT)
    assert found["auc_per_timestep"] == 0.5
    assert earliest_auc(scored(rows[1:], [0] * 3), scored(rows[1:], [0] * 3)) == 0.5


def test_failures_are_told_from_successes_and_leave_steps():
    both = together([scored([[0, 0, 1, 1], [0, 0]], [-1, -1]), scored([[0.9, 0], [0.1]], [-1, -1])])
    found = failure(both, np.array([True, True, False, False]), LIMIT)
    assert (found["failed"], found["detected"], found["false_alarms"]) == (2, 1, 1)
    assert found["median_steps_left"] == 8
    assert found["auc_by_earliest_stop"] == pytest.approx(0)
