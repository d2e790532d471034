"""The runner with what it is for: a pi0 on the Go board."""

import dataclasses
import functools

import numpy as np
import pytest

from mistjax.hooks.sites import Tap
from mistjax.models.config import TINY
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, random_policy
from mistjax.rollouts import run_episodes
from mistjax.rollouts.collect import collect, make_env
from mistjax.rollouts.plan import BOARD_ENV
from mistjax.rollouts.workers import ray as workers_ray
from mistjax.rollouts.workers.pool import EnvPool

TAPS = (
    Tap("vlm.resid", (1,), "all", "mean"),
    Tap("action.attn_heads", None, "all", "mean"),
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    train_word_tokenizer(["place the black stone", "row column 1 2"], [], path)
    config = dataclasses.replace(TINY, num_steps=2, max_token_len=20)
    return random_policy(config, PromptTokenizer.from_file(path, config.max_token_len), BOARD)


def run(policy, seeds, **kwargs):
    return run_episodes(
        policy,
        functools.partial(make_env, BOARD_ENV, max_steps=10),
        seeds,
        num_envs=2,
        taps=TAPS,
        aux=("velocity",),
        perturbation={"brightness": 0.5},
        record_video=[1],
        progress=False,
        **kwargs,
    )


def test_a_board_episode_is_recorded_in_full_and_repeats_bit_for_bit(policy, same):
    pair = run(policy, [0, 1])
    assert not [row["error"] for row in pair.rows if row["error"]]
    trace = pair.trace(1)
    assert trace.env_id == "mistjax/Board-v0"
    assert trace.policy_fingerprint == policy.spec.fingerprint
    assert trace.success is False
    assert trace.failure_cause == "never_grasped"
    assert trace.state.shape == (10, 5)
    assert trace.actions.shape == (10, 4)
    assert trace.inference_step.tolist() == [0, 4, 8]
    layers, heads = policy.config.action_expert.depth, policy.config.action_expert.num_heads
    assert trace.features[str(TAPS[0])].shape == (3, 1, policy.config.vlm.width)
    assert trace.features[str(TAPS[1])].shape[:4] == (3, 2, layers, heads)
    assert trace.aux["velocity"].shape[:2] == (3, 2)
    assert trace.frames.shape == (11, 64, 128, 3)
    assert np.isfinite(trace.info["placement_error_m"])
    same(trace, run(policy, [2, 1]).trace(1))


def test_options_of_the_environment_are_part_of_what_a_run_is(policy, tmp_path):
    small = {"image_size": 48, "max_steps": 4}
    done = collect(policy, tmp_path, episodes=1, env_options=small, videos=1)
    assert done.trace(0).images["observation/image"].shape[1:] == (48, 48, 3)
    assert len(done.trace(0).actions) == 4
    with pytest.raises(ValueError, match="image_size"):
        collect(policy, tmp_path, episodes=1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_board_episodes_bit_for_bit(policy, same, workers):
    here, there = run(policy, range(4)), run(policy, range(4), workers=workers)
    for seed in range(4):
        assert here.trace(seed).error is None
        same(here.trace(seed), there.trace(seed))


RAYS_OWN = (
    "ignore::ResourceWarning",
    "ignore::FutureWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture
def ray():
    """A cluster of two CPUs on this machine."""
    ray = pytest.importorskip("ray", reason="needs Ray")
    workers_ray.start(num_cpus=2)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings(*RAYS_OWN)
def test_ray_actors_give_the_same_board_episodes_bit_for_bit(policy, same, ray):
    here, there = run(policy, range(4)), run(policy, range(4), workers=2, executor="ray")
    for seed in range(4):
        same(here.trace(seed), there.trace(seed))
    with pytest.raises(ValueError, match="3 Ray workers need a CPU each, and the cluster has 2"):
        EnvPool(functools.partial(make_env, BOARD_ENV), 3, workers=3, executor="ray")


@pytest.mark.slow
@pytest.mark.filterwarnings(*RAYS_OWN)
def test_a_ray_actor_that_dies_is_replaced(ray, monkeypatch):
    pool = EnvPool(
        functools.partial(make_env, BOARD_ENV, max_steps=10), 2, workers=1, executor="ray"
    )
    begin = {row: ("reset", (row, row, {}, False)) for row in range(2)}
    assert [reply.error for _, reply in pool.exchange(begin)] == [None, None]
    ray.kill(pool._workers[0]._actor)
    act = {row: ("act", (row, [np.zeros(4, np.float32)])) for row in range(2)}
    (_, killed), (other, bystander) = pool.exchange(act)
    assert killed.lost and "a Ray worker died" in killed.error
    assert other == 1 and bystander.lost and bystander.error is None
    assert [reply.error for _, reply in pool.exchange(begin)] == [None, None]
    pool.close()


@pytest.mark.slow
@pytest.mark.filterwarnings(*RAYS_OWN)
def test_a_machine_that_dies_takes_no_episode_with_it(policy, same, kill_once, tmp_path):
    seeds = range(30)
    with kill_once(tmp_path):
        there = run(policy, seeds, workers=2, executor="ray", out=tmp_path)
    here = run(policy, seeds)
    assert there.seeds == here.seeds == tuple(seeds)
    for seed in seeds:
        same(here.trace(seed), there.trace(seed))
