import math

import numpy as np
import pytest

from mistjax.rollouts import compare, summarize, table
from mistjax.rollouts.run import memory_run
from mistjax.rollouts.summary import by_task, task_table
from mistjax.rollouts.trace import Trace
from mistjax.stats import Rate


def make_run(outcomes, alarms=None, tasks=None):
    """One episode of 10 steps an outcome (None: crashed); `alarms` are first-alarm steps."""
    traces = {}
    for seed, outcome in enumerate(outcomes):
        alarm = None
        if alarms is not None:
            step = alarms[seed]
            alarm = np.arange(10) >= (10 if step is None else step)
        traces[seed] = Trace(
            seed=seed,
            env_id="Toy-v0",
            task="t" if tasks is None else tasks[seed],
            prompt="p",
            policy="p",
            policy_fingerprint="f",
            success=outcome,
            failure_cause="dropped" if outcome is False else None,
            error="Traceback" if outcome is None else None,
            state=np.zeros((10, 2)),
            actions=np.zeros((10, 2)),
            chunks=np.zeros((10, 1, 2)),
            inference_step=np.arange(10),
            timings_ms=np.full(10, 4.0),
            alarm=alarm,
        )
    return memory_run({}, traces)


def test_crashes_are_in_no_rate():
    summary = summarize(make_run([True, False, None, True]))
    assert (summary.success.k, summary.success.n, summary.errors) == (2, 3, 1)
    assert summary.causes == {"dropped": 1}


def test_the_interval_is_wilsons():
    low, high = Rate(8, 10).interval
    z, p, n = 1.959964, 0.8, 10
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert str(Rate(8, 10)) == "80% [49%, 94%] (8/10)"


def test_alarms_split_into_detections_and_false_alarms():
    summary = summarize(make_run([True, True, False, False, False], [None, 4, 2, 6, None]))
    assert (summary.detected.k, summary.detected.n) == (2, 3)
    assert (summary.false_alarms.k, summary.false_alarms.n) == (1, 2)
    assert summary.alarm_step == 4
    assert summary.lead_steps == 6
    assert summary.inference_ms == 4


def test_a_policy_without_a_monitor_has_no_alarm_rates():
    summary = summarize(make_run([True, False]))
    assert not summary.monitored
    assert summary.detected.n == summary.false_alarms.n == 0
    assert summary.alarm_step is None


def test_runs_are_paired_by_seed_and_crashes_fall_out():
    before = make_run([False, False, False, True, True, None])
    after = make_run([True, True, False, False, None, True])
    pair = compare(before, after)
    assert (pair.n, pair.repaired, pair.broken) == (4, 2, 1)
    assert pair.difference == pytest.approx(0.25)
    assert pair.p_value == pytest.approx(1.0)


def test_mcnemar_agrees_with_the_sum_over_binomial_tails():
    pair = compare(make_run([False] * 9 + [True]), make_run([True] * 9 + [False]))
    tail = sum(math.comb(10, k) for k in (9, 10)) / 2**10
    assert pair.p_value == pytest.approx(2 * tail)
    assert compare(make_run([True]), make_run([True])).p_value == 1.0


def test_runs_without_a_common_seed_cannot_be_compared():
    with pytest.raises(ValueError, match="no finished seed"):
        compare(make_run([None]), make_run([True]))


def test_the_table_compares_every_arm_with_the_first():
    rows = table({"bare": make_run([False] * 4), "ours": make_run([True] * 4, [None] * 4)})
    assert rows[0]["vs. first arm"] == "–"
    assert rows[1]["vs. first arm"] == "+100 pt (p = 0.12, n = 4)"
    assert rows[1]["false alarms"].endswith("(0/4)")


def test_each_task_has_its_own_rate_and_crashes_are_in_none():
    bare = make_run([True, False, True, None], tasks=["bowl", "cup", "bowl", "cup"])
    mist = make_run([True, True, None], tasks=["bowl", "cup", "drawer"])
    assert by_task(bare) == {"bowl": Rate(2, 2), "cup": Rate(0, 1)}
    assert by_task(mist)["drawer"] == Rate(0, 0)
    rows = task_table({"bare": bare, "mist": mist})
    assert [row["task"] for row in rows] == ["bowl", "cup", "drawer"]
    assert rows[0] == {"task": "bowl", "bare": str(Rate(2, 2)), "mist": str(Rate(1, 1))}
    assert rows[2]["bare"] == rows[2]["mist"] == "–"
