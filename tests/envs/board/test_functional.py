"""The functional board is the MuJoCo board: same episodes, same faults, same outcome."""

import itertools

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.envs.board import functional, outcome
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.board.expert import expert_action
from mistjax.envs.board.faults import FAULTS, Fault
from mistjax.envs.board.functional import FunctionalBoard

BOARD = FunctionalBoard()


class Blind(BoardEnv):
    def pictures(self):
        return np.zeros((2, 64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    "perturbation", [{}, {"stone_count": 0.7, "stone_layout": 1.0}, {"initial_positions": 1.0}]
)
def test_a_seed_is_the_same_episode_in_both(perturbation):
    env, seeds = Blind(), [3, 11, 2**31 - 1]
    starts, prompts, _ = BOARD.draw_starts(seeds, perturbation=perturbation)
    for i, seed in enumerate(seeds):
        observation, _ = env.reset(seed=seed, options={"perturbation": perturbation})
        assert prompts[i] == observation["prompt"]
        count = len(env.world.stones)
        np.testing.assert_array_equal(starts.present[i], np.arange(10) < count)
        stones = np.stack(starts.stones, -1)[i, :count]
        np.testing.assert_allclose(stones, env.world.stones, atol=2e-4)
        np.testing.assert_allclose(np.stack(starts.gripper, -1)[i], env.world.gripper, atol=1e-6)
        assert starts.task.goal[i] == env.goal
        np.testing.assert_allclose(starts.task.target[i], env.target, rtol=1e-6)


@pytest.mark.slow
def test_an_episode_looks_the_same_in_both():
    env = BoardEnv(image_size=32)
    board = FunctionalBoard(image_size=32)
    starts, *_ = board.draw_starts([4])
    env.reset(seed=4)
    drawn = np.asarray(jax.jit(board.pictures)(jax.jit(jax.vmap(board.reset))(starts)))[0]
    differ = np.abs(drawn.astype(int) - env.pictures())
    assert (differ > 1).mean() < 1e-3


def worlds(n, rng):
    """Random worlds on both sides of every limit."""
    for _ in range(n):
        gripper = rng.uniform([-0.1, -0.1, 0.013], [0.1, 0.1, 0.06])
        stones = gripper + rng.uniform(-0.02, 0.02, (4, 3))
        stones[:, 2] = rng.choice([0.0191, gripper[2]], 4)
        goal = int(rng.integers(4))
        target = stones[goal, :2] + rng.uniform(-0.03, 0.03, 2)
        yield (
            outcome.Task(goal, target),
            gripper,
            rng.uniform(0, 0.02),
            float(rng.choice([-1, 1])),
            stones.T,
            rng.random(4) < 0.8,
            0.4,
        )


def test_what_counts_is_the_same_on_either_kind_of_array():
    rng = np.random.default_rng(0)
    jitted = jax.jit(outcome.observe, static_argnames="tolerance")
    rows = list(worlds(120, rng))
    seen = set()
    for before, now in itertools.pairwise(rows):
        mine = [outcome.observe(*world) for world in (before, now)]
        theirs = [
            jitted(*jax.tree.map(jnp.asarray, world[:-1]), tolerance=world[-1])
            for world in (before, now)
        ]
        for a, b in zip(mine, theirs, strict=True):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)
        task = now[0]
        progress = outcome.advance(outcome.begin(4), task, *mine)
        traced = outcome.advance(jax.tree.map(jnp.asarray, outcome.begin(4)), task, *theirs)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), progress, traced)
        cause = int(outcome.failure_cause(progress, task, mine[1]))
        assert cause == outcome.failure_cause(traced, task, theirs[1])
        phase = int(outcome.phase(task, now[1], now[4], mine[1]))
        assert phase == outcome.phase(task, jnp.asarray(now[1]), jnp.asarray(now[4]), theirs[1])
        seen.add((cause, phase))
    assert len(seen) > 6


class Bare(gym.Env):
    """Remembers what it was told to do; a stone is held from step 7 on."""

    def reset(self, *, seed=None, options=None):
        self.actions = []
        return {}, {"held": None}

    def step(self, action):
        self.actions.append(np.array(action))
        return {}, 0.0, False, False, {"held": 1 if len(self.actions) > 7 else None}


class OnTheHost(gym.Wrapper):
    """What the compiled board does to actions, one at a time."""

    def __init__(self, env, fault):
        super().__init__(env)
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.asked, self.rng = [], np.random.default_rng(seed)
        self.triggered = 0 if self.fault.trigger == "start" else None
        self.held = info["held"] is not None
        return observation, info

    def step(self, action):
        self.asked.append(np.asarray(action, np.float64))
        now, fault = len(self.asked) - 1, self.fault
        fires = action[3] < 0 if fault.trigger == "close" else self.held
        if self.triggered is None and fires:
            self.triggered = now
        onset = None if self.triggered is None else self.triggered + fault.delay
        active = onset is not None and onset <= now < onset + fault.duration
        if active:
            action = FAULTS[fault.name](np.stack(self.asked), fault.strength, self.rng)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.held = info["held"] is not None
        return observation, reward, terminated, truncated, {**info, "fault_active": active}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("trigger", ["start", "close", "held"])
def test_a_fault_changes_the_same_actions_in_the_same_way(name, trigger):
    fault = Fault(name, 0.6, trigger, delay=2, duration=9)
    asked = np.random.default_rng(1).uniform(-1, 1, (24, 4)).astype(np.float32)
    asked[:4, 3] = 1.0
    bare = Bare()
    env = OnTheHost(bare, fault)
    env.reset(seed=5)
    active = [env.step(action)[-1]["fault_active"] for action in asked]
    starts, *_ = BOARD.draw_starts([5], fault=fault)
    state = BOARD.reset(jax.tree.map(lambda leaf: leaf[0], starts))

    def step(state, xs):
        action, held = xs
        moment = state.moment._replace(held=held)
        done, queue, triggered, now = functional._corrupt(
            state.start.fault, state._replace(moment=moment), action
        )
        progress = state.progress._replace(steps=state.progress.steps + 1)
        state = state._replace(
            progress=progress,
            gripper_asked=queue,
            triggered=triggered,
            faulty_steps=state.faulty_steps + now.astype(int),
        )
        return state, (done, now)

    held = jnp.where(jnp.arange(24) > 7, 1, -1)
    _, (carried_out, now) = jax.lax.scan(step, state, (jnp.asarray(asked), held))
    np.testing.assert_array_equal(now, active)
    np.testing.assert_allclose(carried_out, bare.actions, atol=1e-6)
    assert 0 < sum(active) < 24


@pytest.mark.slow
def test_the_experts_actions_lead_to_the_same_end():
    env, seeds = Blind(), range(12)
    actions = np.zeros((BOARD.max_steps, len(seeds), 4), np.float32)
    stones, success = np.zeros((BOARD.max_steps, len(seeds), 3)), []
    for i, seed in enumerate(seeds):
        env.reset(seed=seed)
        for t in range(BOARD.max_steps):
            actions[t, i] = expert_action(env.world, env.episode.task)
            *_, done, truncated, _ = env.step(actions[t, i])
            stones[t:, i] = env.world.stones[env.goal]
            if done or truncated:
                break
        success.append(env.is_success())
    starts, *_ = BOARD.draw_starts(seeds)

    def step(state, action):
        state = jax.vmap(BOARD.step)(state, action)
        goal = jax.nn.one_hot(state.start.task.goal, 10)
        return state, jnp.stack([(c * goal).sum(1) for c in state.body.stones], -1)

    last, moved = jax.jit(lambda s, a: jax.lax.scan(step, s, a))(
        jax.vmap(BOARD.reset)(starts), actions
    )
    np.testing.assert_array_equal(last.success, success)
    assert np.median(np.linalg.norm(moved - stones, axis=-1)) < 5e-4
