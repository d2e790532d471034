"""What the LIBERO evaluation makes of episodes: detectors that did not see what they score."""

import dataclasses

import numpy as np

from experiments.studies import libero_policy, libero_pro
from experiments.studies.libero_loop import by_fault, named
from experiments.studies.libero_policy import Config, cross_fit, detection
from mistjax.detect.data import Episodes
from mistjax.detect.metrics import roc_auc

FIRST_END = 12  # inferences of a success; a failure takes 21


def recorded(n, apart, width=3):
    """n episodes of five tasks; every other one fails, and is `apart` from the first step on."""
    rng, success = np.random.default_rng(0), np.arange(n) % 2 == 0
    lengths = np.where(success, FIRST_END, 21)
    own = rng.normal(0, 1, (n, width)) + apart * ~success[:, None]
    features = [x + rng.normal(0, 0.1, (t, width)) for x, t in zip(own, lengths, strict=True)]
    return Episodes.from_sequences(features, success, np.arange(n) // 2 % 5)


def auc(name, episodes):
    peaks, _ = cross_fit(name, episodes, 5, 0.2)
    return roc_auc(peaks, ~episodes.success)


def test_what_tells_outcomes_apart_from_the_start_is_found():
    assert auc("linear_probe", recorded(60, 4.0)) > 0.95


def test_no_episode_is_scored_by_a_detector_that_saw_it():
    wide = recorded(60, 0.0, width=80)  # enough directions to know every episode by heart
    assert 0.25 < auc("linear_probe", wide) < 0.75


def test_length_says_nothing_before_the_first_episode_ends():
    assert auc("trajectory_length", recorded(60, 4.0)) == 0.5


def test_an_alarm_that_only_waits_is_never_false_and_never_early():
    episodes = recorded(60, 0.0)
    _, alarms = cross_fit("trajectory_length", episodes, 5, 0.2)
    assert not alarms[episodes.success].any()
    assert (alarms[~episodes.success].argmax(axis=1) == FIRST_END).all()


def test_the_promise_holds_for_scores_without_meaning():
    episodes = recorded(400, 0.0)
    _, alarms = cross_fit("linear_probe", episodes, 5, 0.2)
    assert 0.1 < alarms[episodes.success].any(axis=1).mean() < 0.3


def test_a_task_that_always_takes_longer_adds_nothing_to_the_mean_over_tasks():
    failed, task = np.array([0, 1, 0, 1, 1, 1], bool), np.array([0, 0, 0, 1, 1, 1])
    score = task + np.array([0.2, 0.1, 0.0, 0, 0, 0])
    assert roc_auc(score, failed) > 0.8
    assert libero_policy._task_mean(score, failed, task) == 0.5  # of the one with both outcomes


def test_too_few_failures_are_said_and_not_scored(monkeypatch):
    episodes = recorded(60, 4.0).take(np.r_[0:60:2, 1:9:2])
    monkeypatch.setattr(libero_policy, "episodes_from_runs", lambda *_: episodes)
    found = detection(Config(), runs=[])
    assert found == {
        "n": 34,
        "failures": 4,
        "reason": "no detectors: fewer than 5 of one outcome",
    }


def test_rates_and_steps_of_alarms(monkeypatch):
    episodes = recorded(60, 4.0)
    monkeypatch.setattr(libero_policy, "episodes_from_runs", lambda *_: episodes)
    monkeypatch.setattr(libero_policy, "DETECTORS", ("linear_probe", "trajectory_length"))
    found = detection(Config(), runs=[])
    assert (found["n"], found["failures"]) == (60, 30)
    probe, length = found["detectors"].values()
    assert probe["detected_by_earliest_stop"]["k"] > 25 > length["detected_by_earliest_stop"]["k"]
    assert probe["auc"]["bootstrap95"][0] > 0.9
    assert length["detected"]["k"] == 30 and length["median_alarm_step"] == 5 * FIRST_END


def test_tasks_that_no_detector_saw_are_scored_apart(monkeypatch):
    episodes = recorded(60, 4.0)
    # two of the five tasks are held out, and there failures look like successes
    monkeypatch.setattr(libero_policy, "DETECTORS", ("linear_probe", "trajectory_length"))
    monkeypatch.setattr(libero_policy, "SPLITS", range(1))
    unseen = libero_policy.split_tasks(episodes.task_id, 0).val_unseen
    features = np.array(episodes.features)
    features[unseen] *= -1
    found = libero_policy.seen_unseen(dataclasses.replace(episodes, features=features))
    (seen,), (unseen,) = found["linear_probe"].values()
    assert seen > 0.95 and unseen < 0.6
    assert found["trajectory_length"] == {"val_seen": [0.5], "val_unseen": [0.5]}


def test_names_are_counted_by_what_was_unsound():
    watched = {
        1: {"fault_input": "front", "named_input": "front"},
        2: {"fault_input": "front", "named_input": None},
        3: {"fault_input": None, "named_input": "state"},
        4: {"fault_input": "front", "named_input": "front"},
    }
    expected = {"mixture": {"front": {"front": 2, "nothing": 1}, "nothing": {"state": 1}}}
    assert named({"mixture": {"bare": {}, "monitor": watched, "mist": {}}}) == expected
    assert named({"mixture": {"bare": {}, "mist": watched}}) == expected


def test_when_a_fault_was_named_and_what_each_arm_made_of_it():
    def row(at, name="front", success=True, fault="front_black", truth="front"):
        return {"fault": fault, "fault_input": truth, "fault_onset": 7, "named_input": name,
                "named_step": at, "success": success}  # fmt: skip

    mist = {
        1: row(10),
        2: row(15, success=False),
        3: row(65),
        4: row(5),
        5: row(10, "wrist"),
        6: row(None, None),
        7: row(None, None, fault=None, truth=None),
    }
    bare = {seed: row(None, success=seed == 7) for seed in mist}
    found = by_fault({"mixture": {"bare": bare, "mist": mist}}, 5)["mixture"]
    assert found["none"] == {"n": 1, "success": {"bare": 1, "mist": 1}, "named": {}}
    assert found["front_black"] == {
        "n": 6,
        "success": {"bare": 0, "mist": 5},
        "named": {"at once": 1, "within ten looks": 1, "later": 1, "before": 1, "never": 2},
    }


def test_a_condition_is_a_suite_or_a_strength():
    config = libero_pro.Config(episodes=2)
    swapped, moved = (libero_pro.plan(config, name) for name in ("swap", "position_0.5"))
    assert (swapped.suite, dict(swapped.perturbation)) == ("libero_object_swap", {})
    assert (moved.suite, dict(moved.perturbation)) == ("libero_object", {"position": 0.5})


def test_both_arms_are_paired_and_crashes_are_in_no_rate():
    def row(success, named=None):
        at = None if named is None else 10
        return {"success": success, "named_input": named, "named_step": at, "median_ms": 1.0,
                "fault": None}  # fmt: skip

    found = {
        "bare": {1: row(True), 2: row(False), 3: row(True)},
        "mist": {1: row(False, "front"), 2: row(False), 3: row(True, "front")},
    }
    result = libero_pro.summary("swap", found, 4)
    bare, mist = result["rows"]
    assert (bare["successes"], mist["successes"], mist["broken"], mist["crashed"]) == (2, 1, 1, 1)
    assert result["named"] == {"front": 2, "nothing": 1}
