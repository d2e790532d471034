"""Compiled episodes on a Ray cluster of two machines, one of which dies."""

import dataclasses
import functools
import os
import signal

import numpy as np
import pytest

from mistjax.policies.load import load_policy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.workers import ray

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning",
        "ignore::FutureWarning",
        "ignore::DeprecationWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ),
]
PLAN = EpisodePlan(24, 22_500_000, compiled=True, num_envs=4, max_steps=60)


def double_but_die(marks, times, seeds):
    """Twice the seeds; the process that plays seed 2 is killed so many times."""
    if 2 in seeds:
        tries = len(list(marks.iterdir()))
        (marks / str(tries)).touch()
        if tries < times:
            os.kill(os.getpid(), signal.SIGKILL)
    yield from (2 * seed for seed in seeds)


def test_what_dies_with_a_process_is_played_again_and_handed_on_once(
    cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray, "RETRIES", 1)
    chunks = [[0, 1], [2, 3], [4]]
    played = ray.spread(functools.partial(double_but_die, tmp_path, 1), chunks, 2)
    assert sorted(x for part in played for x in part) == [0, 2, 4, 6, 8]
    assert len(list(tmp_path.iterdir())) == 2
    always = functools.partial(double_but_die, tmp_path, 1000)
    with pytest.raises(RuntimeError, match="died 2 times"):
        list(ray.spread(always, chunks, 2))


def test_a_machine_that_dies_takes_no_episode_with_it(kill_once, tmp_path):
    policy, folder = load_policy("checkpoints/board_pi0"), tmp_path / "there"
    with kill_once(folder):
        there = collect(policy, folder, dataclasses.replace(PLAN, executor="ray", workers=2))
    here = collect(policy, tmp_path / "here", PLAN)
    assert there.seeds == here.seeds == PLAN.seeds()
    assert there.config == here.config
    told = ("seed", "success", "failure_cause", "prompt")
    assert [{k: row[k] for k in told} for row in there.rows] == [
        {k: row[k] for k in told} for row in here.rows
    ]
    assert {row["success"] for row in here.rows} == {True, False}
    for seed in PLAN.seeds()[:4]:  # the first chunks have the same size, so the same program
        np.testing.assert_allclose(
            there.trace(seed).chunks[0], here.trace(seed).chunks[0], atol=1e-4
        )
