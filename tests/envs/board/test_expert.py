"""The scripted expert finishes from wherever it is put, and its motion follows the words."""

import dataclasses

import numpy as np
import pytest

from mistjax.envs.board import scene as s
from mistjax.envs.board.expert import expert_action, recovery_action
from mistjax.envs.board.instructions import Task


def run(env, limit=300):
    """Play until success: steps taken, highest carry in metres, and whether it succeeded."""
    top, info = 0.0, {"success": env.is_success()}
    for step in range(limit):
        if info["success"]:
            return step, top, True
        info = env.step(recovery_action(env))[4]
        if info["held"] is not None:
            top = max(top, env.world.gripper[2])
    return limit, top, False


@pytest.mark.parametrize("seed", range(8))
def test_it_succeeds_on_fresh_episodes(blind, seed):
    blind.reset(seed=seed)
    assert run(blind, 120)[2]


def test_speed_words_change_its_speed_and_height_words_its_height(blind):
    def motion(speed, height):
        blind.reset(seed=9, options={"task": Task("black", 2, 2, speed, height)})
        return run(blind)

    steps = [motion(speed, "")[0] for speed in ("quickly", "", "slowly")]
    assert steps[1] > 1.2 * steps[0]
    assert steps[2] > 1.4 * steps[1]
    tops = [motion("", height)[1] for height in ("low", "", "high")]
    assert tops[1] > tops[0] + 0.015
    assert tops[2] > tops[1] + 0.015


def test_it_recovers_from_random_actions_wherever_the_stone_stays_in_reach(blind):
    recovered = 0
    for seed in range(6):
        blind.reset(seed=seed)
        rng = np.random.default_rng(seed)
        for step in range(45):
            wild = np.append(rng.normal(0, 0.5, 3), rng.choice([-1.0, 1.0]))
            blind.step(recovery_action(blind) if step < 25 else wild)
        success = run(blind, 200)[2]
        x, y = blind.world.stones[blind.goal, :2]
        in_reach = x < s.WORKSPACE_HIGH[0] and abs(y) < s.WORKSPACE_HIGH[1]
        assert success == in_reach, f"seed {seed}: stone at {x:.3f}, {y:.3f}"
        recovered += success
    assert recovered >= 4


def test_it_clears_a_wrong_stone_from_the_cell_and_then_places_the_right_one(blind):
    blind.reset(seed=1, options={"task": Task("black", 2, 4, "quickly")})
    asked, wrong = blind.episode, dataclasses.replace(blind.episode.task, colour="white")
    given = dataclasses.replace(asked, task=wrong)
    for episode in (given, asked):
        blind.restore(dataclasses.replace(blind.snapshot(), episode=episode))
        assert run(blind)[2]
    white = blind.world.stones[1, :2]
    assert np.abs(white - s.cell_xy(2, 4)).max() > s.SPACING


def test_a_finished_task_needs_no_motion(blind):
    blind.reset(seed=1)
    run(blind)
    for _ in range(10):
        blind.step(recovery_action(blind))
    assert np.array_equal(recovery_action(blind), [0.0, 0.0, 0.0, 1.0])


def test_its_actions_stay_in_range(blind):
    blind.reset(seed=2)
    rng = np.random.default_rng(0)
    for _ in range(50):
        world = dataclasses.replace(blind.world, gripper=rng.uniform(-0.3, 0.3, 3))
        action = expert_action(world, blind.episode.task)
        assert np.abs(action).max() <= 1
