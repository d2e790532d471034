"""The board as gymnasium's own tools use it, and what it refuses."""

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import mistjax.envs  # noqa: F401 (registers the environments)
from mistjax.envs.board import env as module
from mistjax.envs.board.env import IMAGE_KEYS, BoardEnv

ZERO = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def env():
    return BoardEnv(max_steps=4)


@pytest.mark.filterwarnings("ignore")  # the checker's advice
def test_gymnasiums_own_check_passes():
    check_env(gym.make("mistjax/Board-v0", max_steps=4).unwrapped)


@pytest.mark.parametrize("width", [0, 1, 3, 5, 7, 8])
def test_an_action_of_another_robot_is_refused(env, width):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected four finite values"):
        env.step(np.zeros(width, np.float32))


@pytest.mark.parametrize("action", [ZERO * np.nan, np.array([0, 0, 0, np.inf]), ZERO[None], 0.5])
def test_an_action_that_is_none_is_refused(env, action):
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected four finite values"):
        env.step(action)


def test_values_outside_of_the_action_space_are_cut(env):
    def after(action):
        env.reset(seed=0)
        return env.step(np.array(action))[0]["observation/state"]

    assert np.array_equal(after([9.0, -9.0, 9.0, 5.0]), after([1.0, -1.0, 1.0, 1.0]))


def test_a_step_before_the_first_reset_says_so():
    with pytest.raises(RuntimeError, match="before the first reset"):
        BoardEnv().step(ZERO)


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), np.arange(4)[3]])
def test_numpy_integers_are_seeds(env, seed):
    ours, theirs = env.reset(seed=seed)[0], env.reset(seed=3)[0]
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"perturbations": {}},
        {"perturbation": {"brightnes": 0.5}},
        {"perturbation": {"brightness": np.nan}},
        {"perturbation": {"brightness": np.inf}},
        {"perturbation": {"brightness": -0.1}},
        {"perturbation": {"brightness": "0.5"}},
        {"perturbation": {"brightness": None}},
        {"perturbation": ["brightness"]},
        {"task": "put the black stone on row 2 column 3"},
        {"scene": {}},
    ],
)
def test_reset_options_that_mean_nothing_are_refused(env, options):
    with pytest.raises(ValueError, match="expected"):
        env.reset(seed=0, options=options)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 0},
        {"max_steps": 0},
        {"picture_every": 0},
        {"tolerance": np.nan},
        {"tolerance": np.inf},
        {"tolerance": 0.0},
        {"render": "opengl"},
        {"render_mode": "human"},
    ],
)
def test_an_environment_that_cannot_be_is_not_made(options):
    with pytest.raises(ValueError, match="expected"):
        BoardEnv(**options)


def test_worlds_are_equal_where_every_number_is(env):
    world = env.reset(seed=1)[1]["world"]
    assert world == env.reset(seed=1)[1]["world"]
    assert world != env.reset(seed=2)[1]["world"]
    assert world != "world"


def test_pictures_do_not_depend_on_double_precision(env):
    plain = env.reset(seed=0)[0]
    with jax.enable_x64(True):
        wide = env.reset(seed=0)[0]
        ids = env.segmentation()
    assert all(np.array_equal(plain[key], wide[key]) for key in IMAGE_KEYS)
    assert np.array_equal(ids, env.segmentation())


def test_a_fork_of_a_process_that_runs_jax_says_so_in_place_of_hanging(env, monkeypatch):
    env.reset(seed=0)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_forked_from_jax", False)
        module._notice_fork()
        with pytest.raises(RuntimeError, match="start it with spawn"):
            env.reset(seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of forks, and of workers that ended
@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_environments_in_processes_work_or_say_why_not(env, context):
    env.reset(seed=0)  # JAX runs here
    envs = gym.make_vec(
        "mistjax/Board-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": context},
        max_steps=4,
    )
    try:
        if context == "fork":
            with pytest.raises(RuntimeError, match="start it with spawn"):
                envs.reset(seed=[0, 1])
            return
        seen, _ = envs.reset(seed=[0, 1])
        assert np.array_equal(seen[IMAGE_KEYS[0]][0], env.reset(seed=0)[0][IMAGE_KEYS[0]])
        envs.step(np.zeros((2, 4), np.float32))
    finally:
        envs.close(terminate=True)
