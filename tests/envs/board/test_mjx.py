"""MuJoCo's solver in JAX behind the functional board."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.cli import main
from mistjax.envs.board import mjx_physics
from mistjax.envs.board import scene as s
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.board.expert import expert_action
from mistjax.envs.board.functional import FunctionalBoard


@pytest.mark.parametrize("rings", [mjx_physics.GRIP, mjx_physics.FOOT])
def test_a_mesh_is_as_high_as_the_stone_and_as_wide_in_the_mean(rings):
    vertices = mjx_physics.stone_vertices(rings)
    assert len(vertices) == sum(n if latitude == 0 else 2 * n for latitude, n in rings)
    assert vertices[:, 2].max() == -vertices[:, 2].min() == pytest.approx(s.STONE_HALF_HEIGHT)
    turns = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    reach = (vertices[:, :2] @ np.stack([np.cos(turns), np.sin(turns)])).max(axis=0)
    assert reach.mean() == pytest.approx(s.STONE_RADIUS, rel=2e-3)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch, tmp_path, capsys):
    mjx_physics.load.cache_clear()
    monkeypatch.setitem(sys.modules, "mujoco.mjx", None)
    monkeypatch.delattr("mujoco.mjx", raising=False)
    with pytest.raises(ImportError, match=r"need mujoco-mjx: pip install 'mistjax\[mjx\]'"):
        FunctionalBoard(physics="mjx")
    words = ["collect", "checkpoints/board_pi0", "--out", str(tmp_path / "run")]
    assert main([*words, "--compiled", "--physics", "mjx", "--episodes", "1"]) == 2
    assert "pip install 'mistjax[mjx]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_other_physics_are_refused():
    with pytest.raises(ValueError, match="physics are 'newton': expected kinematic or mjx"):
        FunctionalBoard(physics="newton")


@pytest.fixture
def mjx():
    return pytest.importorskip("mujoco.mjx", reason="needs mujoco-mjx")


@pytest.mark.slow
def test_the_expert_succeeds_and_the_stone_is_where_mujoco_has_it(mjx):
    env, board, seeds = BoardEnv(image_size=16), FunctionalBoard(physics="mjx"), [3, 23_700_001]
    drawn = board.draw_starts(seeds)
    step, reset = jax.jit(jax.vmap(board.step)), jax.jit(jax.vmap(board.reset))
    actions = np.zeros((board.max_steps, len(seeds), 4), np.float32)
    stones = np.full((board.max_steps, len(seeds), 3), np.nan)
    for i, seed in enumerate(seeds):
        env.reset(seed=seed)
        for t in range(board.max_steps):
            actions[t, i] = expert_action(env.world, env.episode.task)
            *_, done, truncated, _ = env.step(actions[t, i])
            stones[t, i] = env.world.stones[env.goal]
            if done or truncated:
                break
    state, off = reset(drawn.start), []
    goals = np.asarray(drawn.start.task.goal)
    others = np.asarray(drawn.start.present) & (np.arange(s.MAX_STONES) != goals[:, None])
    before = np.stack(state.body.stones, -1)
    for t in range(board.max_steps):
        state = step(state, jnp.asarray(actions[t]))
        now = np.stack(state.body.stones, -1)
        off.append(np.linalg.norm(now[[0, 1], goals] - stones[t], axis=1))
    assert state.success.all()
    assert np.nanmedian(off) < 1e-3
    after = np.stack(state.body.stones, -1)
    assert np.linalg.norm((after - before)[others], axis=-1).max() < 1e-3
    upright = np.asarray(jax.vmap(lambda body: body.rotation)(state.body))[..., 2, 2]
    assert upright[np.asarray(drawn.start.present)].min() > 0.99


@pytest.mark.slow
def test_more_stones_than_it_holds_are_refused(mjx):
    with pytest.raises(ValueError, match="stones, and mjx physics hold 6"):
        FunctionalBoard(physics="mjx").draw_starts(range(8), perturbation={"stone_count": 1.0})
