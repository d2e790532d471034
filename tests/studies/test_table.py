"""A study's rows: paired by seed, corrected for their number, and failures by what lost them."""

import numpy as np
import pytest

from mistjax.stats import mcnemar, wilson
from mistjax.studies.registry import STUDIES
from mistjax.studies.table import LINKS, Target, check_targets, losses, rows

ROW = {
    "fault": None,
    "fault_input": None,
    "fault_onset": None,
    "named_input": None,
    "named_step": None,
    "median_ms": 2.0,
    "steps": 60,
}


def arm(successes, **columns):
    """Seed -> row, one an episode."""
    return {seed: ROW | columns | {"success": won} for seed, won in enumerate(successes)}


BARE = arm([True] * 10 + [False] * 20)
BETTER = arm([True] * 9 + [False] + [True] * 15 + [False] * 5, median_ms=3.0)
ALWAYS = arm([False] * 5 + [True] * 15 + [False] * 10)


def table(**arms):
    return {r.arm: r for r in rows("mixture", arms, dict.fromkeys(arms, 1), "always_best")}


def test_every_arm_is_paired_with_bare_and_with_what_is_always_on():
    found = table(bare=BARE, mist=BETTER, always_best=ALWAYS)
    mist = found["mist"]
    assert (mist.n, mist.successes, mist.repaired, mist.broken) == (30, 24, 15, 1)
    assert mist.interval == pytest.approx(tuple(wilson(24, 30)))
    one = mcnemar(*(np.array([r["success"] for r in rs.values()]) for rs in (BARE, BETTER)))
    assert mist.p_against_bare == pytest.approx(2 * one)  # the smaller one of two
    assert found["bare"].p_against_bare is None
    assert found["always_best"].p_against_always is None
    assert mist.p_against_always < found["bare"].p_against_always
    assert mist.overhead == pytest.approx(1.5)
    assert mist.crashed == 1


def test_without_an_arm_that_is_always_on_there_is_no_such_test():
    assert table(bare=BARE, mist=BETTER)["mist"].p_against_always is None


def test_alarms_are_counted_in_clean_episodes_only():
    clean = arm([True] * 4)
    clean[0] |= {"named_step": 8}
    clean[1] |= {"named_step": 4, "fault": "front_black"}
    assert table(bare=BARE, mist=clean)["mist"].alarms_per_clean_episode == pytest.approx(1 / 3)
    assert table(bare=BARE, mist=BETTER)["mist"].alarms_per_clean_episode is None


def test_a_target_is_met_by_size_and_significance_and_is_left_out_without_its_arms():
    targets = [
        Target("mixture", "mist", "bare", 25, 0.01),
        Target("mixture", "mist", "bare", 50, 0.01),
        Target("mixture", "mist", "always_best", 10, 1e-9),
        Target("nominal", "mist", "bare", -1),
    ]
    found = check_targets(
        targets, {"mixture": {"bare": BARE, "mist": BETTER, "always_best": ALWAYS}}
    )
    assert [t["met"] for t in found] == [True, False, False]
    assert found[0]["difference"] == pytest.approx(100 * 14 / 30)
    low, high = found[0]["difference_interval"]
    assert low < found[0]["difference"] < high


def test_a_failure_is_laid_to_the_first_link_that_broke():
    faulty = {"fault": "front_black", "fault_input": "front", "fault_onset": 10}
    lost = {
        "false alarm": faulty | {"named_input": "front", "named_step": 8},
        "detection": faulty,
        "naming": faulty | {"named_input": "wrist", "named_step": 12},
        "timing": faulty | {"named_input": "front", "named_step": 20},
        "remedy": faulty | {"named_input": "front", "named_step": 16},
        "policy": faulty | {"steps": 12},
    }
    for link, columns in lost.items():
        counts = losses(arm([False, True], **columns), ("front", "wrist"), 4)
        assert counts == dict.fromkeys(LINKS, 0) | {link: 1}
    clean = arm([False, False])
    clean[0] |= {"named_input": "wrist", "named_step": 8}
    assert losses(clean, ("front", "wrist"), 4) == dict.fromkeys(LINKS, 0) | {
        "false alarm": 1,
        "policy": 1,
    }


def test_every_study_compares_with_bare_and_every_target_is_about_its_arms():
    for study in STUDIES.values():
        assert study.arms[0] == "bare"
        for target in study.targets:
            assert {target.arm, target.against} <= set(study.arms)
            assert target.condition in study.conditions
