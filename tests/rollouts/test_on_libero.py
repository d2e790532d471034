"""LIBERO in worker processes: the episodes of a suite, and their numbering."""

import dataclasses
import functools

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.models.config import IMAGE_KEYS, TINY
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import PRESETS, random_policy
from mistjax.policies.load import load_policy
from mistjax.rollouts import load_run, run_episodes
from mistjax.rollouts.collect import collect, make_env
from mistjax.rollouts.plan import LIBERO_ENV, EpisodePlan, suite_seeds
from tests.libero_found import FOUND
from tests.rollouts.test_on_the_board import RAYS_OWN

pytestmark = pytest.mark.skipif(not FOUND, reason="needs LIBERO and its assets")


def test_every_task_of_a_suite_takes_its_turn():
    seeds = suite_seeds("libero_object", 2, first=3)
    assert seeds == tuple(50 * task + start for start in (3, 4) for task in range(10))
    assert suite_seeds("libero_object", 2, tasks=(2, 0)) == (100, 0, 101, 1)
    with pytest.raises(ValueError, match="task_id is 10, expected 0 to 9"):
        suite_seeds("libero_object", 2, tasks=(0, 10))
    with pytest.raises(ValueError, match="each at most once"):
        EpisodePlan(2, suite="libero_object", tasks=(2, 2))
    with pytest.raises(ValueError, match="start states 0 to 49"):
        suite_seeds("libero_object", 10, first=41)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suite"), [("libero_pi0", "libero_object"), ("libero_both_pi0", "libero_spatial")]
)
def test_a_shipped_policy_is_evaluated_without_naming_its_robot(name, suite, tmp_path):
    words = ["eval", str(SHIPPED / name), "--suite", suite, "--tasks", "3"]
    options = ["--episodes", "1", "--max-steps", "10", "--out", str(tmp_path / "run")]
    assert main([*words, *options]) == 0
    (row,) = load_run(tmp_path / "run" / "bare").rows
    assert (row["error"], row["steps"], row["seed"]) == (None, 10, 150)


@pytest.mark.slow
def test_a_worker_process_gives_the_same_episodes(tmp_path, same):
    train_word_tokenizer(["pick up the soup and place it in the basket"], [], tmp_path / "words")
    config = dataclasses.replace(
        TINY, action_dim=8, action_horizon=5, max_token_len=20, num_steps=2, image_keys=IMAGE_KEYS
    )
    preset = dataclasses.replace(PRESETS["pi0_libero"], model=None)
    tokenizer = PromptTokenizer.from_file(tmp_path / "words", 20)
    policy = random_policy(config, tokenizer, preset)
    make = functools.partial(
        make_env, LIBERO_ENV, suite="libero_object", image_size=32, picture_every=5
    )

    def run(workers):
        seeds = suite_seeds("libero_object", 1)[:2]
        kwargs = {"max_steps": 6, "num_envs": 2, "progress": False}
        return run_episodes(policy, make, seeds, workers=workers, **kwargs)

    here, there = run(0), run(2)
    for seed in (0, 50):
        assert here.trace(seed).error is None
        same(here.trace(seed), there.trace(seed))
    assert len(here.trace(0).actions) == 6
    assert here.trace(0).task != here.trace(50).task
    assert np.ptp(here.trace(0).state) > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings(*RAYS_OWN)
def test_a_machine_that_dies_takes_no_scene_with_it(same, kill_once, tmp_path):
    policy = load_policy(SHIPPED / "libero_pi0")
    plan = EpisodePlan(6, suite="libero_object", tasks=(0,), max_steps=30, num_envs=2)
    with kill_once(tmp_path / "there"):
        there = collect(policy, tmp_path / "there", plan, workers=2, executor="ray")
    here = collect(policy, tmp_path / "here", plan)
    assert len(there.finished) == len(here.finished) == 6
    for row in here.finished:
        assert row["error"] is None
        same(here.trace(row["seed"]), there.trace(row["seed"]))
