"""What the board environment promises."""

# pyright: reportAttributeAccessIssue=false

import gymnasium as gym
import numpy as np
import pytest

from mistjax.envs.board import scene as s
from mistjax.envs.board.drawing import GlCamera
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.board.expert import recovery_action
from mistjax.envs.board.instructions import PHRASINGS, Task, instruct
from mistjax.envs.board.raycast import pictures


def same(a, b) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in a)


def play(env, seed, **options):
    """The expert's episode: its last info."""
    _, info = env.reset(seed=seed, options=options)
    done = False
    while not done:
        _, _, terminated, truncated, info = env.step(recovery_action(env))
        done = terminated or truncated
    return info


def test_observations_fit_the_declared_space(board):
    observation, info = board.reset(seed=1)
    assert board.observation_space.contains(observation)
    prompts = [instruct(info["task"], phrasing) for phrasing in range(PHRASINGS)]
    assert observation["prompt"] in prompts
    observation, reward, *_ = board.step(board.action_space.sample())
    assert board.observation_space.contains(observation)
    assert reward == 0


def test_it_is_registered_with_gymnasium():
    env = gym.make("mistjax/Board-v0", max_steps=7)
    assert isinstance(env.unwrapped, BoardEnv)
    assert env.unwrapped.max_steps == 7


def test_the_same_seed_gives_the_same_episode_bit_for_bit(board):
    runs = []
    for _ in range(2):
        first, _ = board.reset(seed=11)
        rng = np.random.default_rng(0)
        runs.append([first, *(board.step(rng.uniform(-1, 1, 4))[0] for _ in range(5))])
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    assert not same(runs[0][0], board.reset(seed=12)[0])


def test_a_restored_snapshot_repeats_the_future_bit_for_bit_in_another_environment(board):
    board.reset(seed=5)
    for _ in range(40):
        board.step(recovery_action(board))
    snapshot = board.snapshot()
    other = BoardEnv()
    _, info = other.restore(snapshot)
    assert info["held"] == board.world.held
    for _ in range(8):
        action = recovery_action(board)
        a, *_, info_a = board.step(action)
        b, *_, info_b = other.step(action)
        assert same(a, b)
        assert info_a["step"] == info_b["step"]


def test_one_unit_of_action_moves_the_gripper_twenty_millimetres(blind):
    blind.reset(seed=0, options={"task": Task("black", 3, 3)})
    for axis, sign in ((0, -1), (1, 1), (2, 1)):
        before = blind.world.gripper
        action = np.zeros(4)
        action[axis] = sign * 0.5
        blind.step(action)
        moved = blind.world.gripper - before
        assert abs(moved[axis] - sign * 0.010) < 0.002
    assert blind.world.command == 1


def test_the_expert_succeeds_and_the_episode_ends(blind):
    info = play(blind, 3)
    assert info["success"]
    assert info["failure_cause"] is None
    assert info["placement_error_m"] < 0.002
    assert info["step"] + info["steps_left"] == blind.max_steps


def ends(env, seed, policy):
    env.reset(seed=seed)
    done = False
    while not done:
        _, _, terminated, done, info = env.step(policy(env))
        assert not terminated
    return info


def other_colour(env):
    """Expert for the stone of the other colour."""
    task = env.episode.task
    colour = "white" if task.colour == "black" else "black"
    return Task(colour, task.row, task.column, "quickly", "")


def test_an_idle_robot_never_grasped(blind):
    info = ends(blind, 0, lambda env: np.array([0.0, 0.0, 0.0, 1.0]))
    assert info["failure_cause"] == "never_grasped"
    assert info["time_s"] == info["time_limit_s"]


def test_the_wrong_colour_is_a_wrong_stone(blind):
    from mistjax.envs.board.expert import expert_action

    info = ends(blind, 0, lambda env: expert_action(env.world, other_colour(env)))
    assert info["failure_cause"] == "wrong_stone"


def test_the_right_stone_on_another_cell_is_a_wrong_cell(blind):
    from mistjax.envs.board.expert import expert_action

    def elsewhere(env):
        task = env.episode.task
        return expert_action(env.world, Task(task.colour, 6 - task.row, 6 - task.column, "quickly"))

    info = ends(blind, 2, elsewhere)
    assert info["failure_cause"] == "wrong_cell"
    assert info["placement_error_m"] > s.SPACING


def test_letting_go_in_the_air_is_a_drop(blind):
    def drop(env):
        if env.world.held is not None and env.world.gripper[2] > 0.07:
            env.let_go = True
        if env.let_go:
            return np.array([0.0, 0.0, 0.0, 1.0])
        return recovery_action(env)

    blind.let_go = False
    assert ends(blind, 4, drop)["failure_cause"] == "dropped"


def test_holding_on_to_the_end_is_a_timeout(blind):
    def hold(env):
        return np.array([0, 0, 0.2, -1.0]) if env.world.held is not None else recovery_action(env)

    assert ends(blind, 4, hold)["failure_cause"] == "timeout"


def test_a_task_can_be_asked_for(blind):
    task = Task("white", 5, 1, "slowly", "high")
    _, info = blind.reset(seed=0, options={"task": task})
    assert info["task"] == task
    assert np.allclose(info["target_xy"], s.cell_xy(5, 1))


@pytest.mark.parametrize("options", [{"taks": 1}, {"perturbation": {"fog": 0.5}}])
def test_unknown_options_are_refused(blind, options):
    with pytest.raises(ValueError, match="unknown"):
        blind.reset(seed=0, options=options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_action_that_is_not_finite_is_refused(blind, bad):
    blind.reset(seed=0)
    with pytest.raises(ValueError, match="not finite"):
        blind.step(np.array([0.0, bad, 0.0, 1.0]))


def test_an_unknown_renderer_is_refused():
    with pytest.raises(ValueError, match="raycast"):
        BoardEnv(render="povray")


def test_a_missing_gl_names_the_fix(monkeypatch):
    import mujoco

    def broken(*_):
        raise ImportError("no libEGL")

    monkeypatch.setattr(mujoco, "Renderer", broken)
    with pytest.raises(RuntimeError, match=r"libegl1.*render='raycast'"):
        GlCamera(64)


def test_a_new_episode_does_not_recompile_the_pictures(board):
    board.reset(seed=0)
    compiled = pictures._cache_size()
    board.reset(seed=1, options={"perturbation": {"stone_count": 1.0, "brightness": 1.0}})
    assert pictures._cache_size() == compiled
