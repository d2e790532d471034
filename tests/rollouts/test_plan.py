"""A plan that cannot be carried out is refused before anything is started."""

import numpy as np
import pytest

from mistjax.envs.faults.battery import Injection
from mistjax.envs.libero.simulator import check_memory
from mistjax.rollouts import EpisodePlan, run_episodes
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import check_seeds

REFUSED = {
    "no episode": ({"episodes": 0}, "episodes is 0: expected 1 or more"),
    "fewer": ({"episodes": -3}, "episodes is -3: expected 1 or more"),
    "half": ({"episodes": 2.5}, r"episodes is 2\.5: expected a whole number"),
    "a word": ({"episodes": "many"}, "episodes is 'many': expected a whole number"),
    "NaN": ({"videos": float("nan")}, "videos is nan: expected a whole number"),
    "a negative seed": ({"first_seed": -1}, "first_seed is -1: expected 0 or more"),
    "too late a seed": ({"first_seed": 2**31 - 1, "episodes": 2}, r"seeds end at 2\*\*31 - 1"),
    "negative videos": ({"videos": -1}, "videos is -1: expected 0 or more"),
    "no step": ({"max_steps": 0}, "max_steps is 0: expected 1 or more"),
    "negative workers": ({"workers": -1}, "workers is -1: expected 0 or more"),
    "no environment": ({"num_envs": 0}, "num_envs is 0: expected 1 or more"),
    "an executor": ({"executor": "slurm"}, "executor is 'slurm': expected 'process' or 'ray'"),
    "tasks alone": ({"tasks": (1,)}, "no LIBERO suite is named"),
    "a task twice": ({"suite": "libero_object", "tasks": (1, 1)}, "expected each at most once"),
    "a negative task": ({"suite": "libero_object", "tasks": (-1,)}, "a task is -1"),
    "a suite": ({"suite": "libero_table"}, "unknown suite 'libero_table'; expected one of"),
    "an environment": ({"env": "mistjax/Bord-v0"}, "no environment is called 'mistjax/Bord-v0'"),
    "a module": ({"env": "no.such.module:Env-v0"}, "no environment is called 'no.such.module"),
    "a perturbation": (
        {"perturbation": {"nope": 0.5}},
        "unknown perturbation 'nope'",
    ),
    "a strength": ({"perturbation": {"brightness": 1.5}}, r"is 1\.5, expected 0 to 1"),
    "a kind": ({"perturbation": {"brightness": "much"}}, "is much, expected 0 to 1"),
    "NaN strength": ({"perturbation": {"brightness": np.nan}}, "is nan: expected a finite"),
    "inf strength": ({"perturbation": {"brightness": np.inf}}, "is inf: expected a finite"),
    "LIBERO's": (
        {"suite": "libero_goal", "perturbation": {"brightness": 0.5}},
        "unknown perturbation 'brightness'; expected one of: object",
    ),
    "LIBERO's kind": (
        {"env": "mistjax/Libero-v0", "perturbation": {"position": "up"}},
        "unknown kind 'up' of 'position'",
    ),
}


@pytest.mark.parametrize("options, told", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_carried_out_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        EpisodePlan(**options)


def test_numbers_of_numpy_become_pythons():
    plan = EpisodePlan(
        episodes=np.int64(3),
        first_seed=np.uint8(7),
        num_envs=np.int32(2),
        perturbation={"brightness": np.float32(0.5), "camera_fov": np.int64(1)},
        tasks=(),
    )
    assert plan == EpisodePlan(3, 7, num_envs=2, perturbation={"brightness": 0.5, "camera_fov": 1})
    assert {type(seed) for seed in plan.seeds()} == {int}
    assert {type(value) for value in plan.perturbation.values()} == {int, float}


def test_seeds_of_numpy_run_as_pythons_do(policy, make_env, same):
    expected = run_episodes(policy, make_env, range(3), num_envs=2, progress=False)
    for seeds in (np.arange(3), list(np.arange(3)), np.arange(3, dtype=np.uint16)):
        run = run_episodes(policy, make_env, seeds, num_envs=np.int64(2), progress=False)
        assert run.seeds == (0, 1, 2)
        same(run.trace(1), expected.trace(1))
    filmed = run_episodes(policy, make_env, [4], record_video=np.array([4]), progress=False)
    assert filmed.trace(4).frames is not None


@pytest.mark.parametrize(
    "seeds", [[], [1, 1], [-1], [2**31], [0.5], ["1"], np.zeros((2, 2), int), [np.nan]], ids=str
)
def test_seeds_that_name_no_episodes_are_refused(seeds):
    with pytest.raises(ValueError, match="expected distinct whole numbers from 0"):
        check_seeds(seeds)


def test_an_environment_says_itself_which_perturbations_it_knows(policy, make_env):
    class Choosy(make_env):
        @staticmethod
        def check_perturbation(perturbation):
            if unknown := set(perturbation) - {"drift"}:
                raise ValueError(f"no wind of that name: {unknown}")

    with pytest.raises(ValueError, match="no wind of that name"):
        run_episodes(policy, Choosy, [0], perturbation={"wind": 1.0}, progress=False)
    run = run_episodes(policy, Choosy, [0], perturbation={"drift": 1.0}, progress=False)
    assert run.rows[0]["error"] is None


def test_options_of_a_plan_can_be_given_one_by_one(policy, make_env, same):
    plan = EpisodePlan(env=None, num_envs=2, max_steps=3, perturbation={"drift": 0.1})
    whole = run_episodes(policy, make_env, range(3), plan, progress=False)
    single = run_episodes(
        policy,
        make_env,
        range(3),
        num_envs=2,
        max_steps=3,
        perturbation={"drift": 0.1},
        progress=False,
    )
    assert whole.config == single.config
    same(whole.trace(2), single.trace(2))
    with pytest.raises(TypeError, match="num_env"):
        run_episodes(policy, make_env, range(3), num_env=2)


def test_a_batch_is_as_large_as_the_environment_bears():
    assert EpisodePlan().batch_size == 8
    assert EpisodePlan(suite="libero_object").batch_size == 1
    assert EpisodePlan(suite="libero_object", workers=4).batch_size == 4
    assert EpisodePlan(workers=4, num_envs=3).batch_size == 3


def test_a_plan_has_one_fault_a_mixture_or_none():
    assert EpisodePlan().mixture() is None
    one = EpisodePlan(fault=("front_dimmed", 0.8), fault_onset=(0, 0)).mixture()
    assert one is not None and one.draw(3) == Injection("front_dimmed", 0.8, 0)
    assert not one.sensor_noise
    shipped = EpisodePlan(faults="board", sensor_noise=False).mixture()
    assert shipped is not None and not shipped.sensor_noise
    noise = EpisodePlan(sensor_noise=True).mixture()
    assert noise is not None and noise.draw(3) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fault": ("front_melted", 1.0)}, "unknown fault 'front_melted'"),
        ({"fault": ("push", float("nan"))}, "expected 0 to 1"),
        ({"fault": ("push", 1.0), "faults": "board"}, "one of them"),
        ({"faults": "boart"}, "no mixture boart"),
        ({"fault": ("push", 1.0), "fault_onset": (9, 2)}, "first and the last step"),
        ({"fault": ("push", 1.0), "fault_onset": (-1, 2)}, "an onset is -1"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_before_anything_starts(options, says):
    with pytest.raises(ValueError, match=says):
        EpisodePlan(**options)


def test_a_policy_of_another_robot_is_refused_before_a_scene_is_built(policy, tmp_path):
    with pytest.raises(ValueError, match="moves dx, dy, and LIBERO's robot takes"):
        collect(policy, tmp_path / "run", EpisodePlan(1, suite="libero_object"))
    assert not (tmp_path / "run").exists()


def test_more_scenes_than_fit_in_memory_are_refused(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 16000000 kB\nMemAvailable:    6000000 kB\n")
    check_memory(2, meminfo)
    with pytest.raises(ValueError, match=r"about 7\.5 GB, and 6\.1 GB are free: give at most 2"):
        check_memory(3, meminfo)
