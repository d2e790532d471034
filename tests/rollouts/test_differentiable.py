"""What an edit does to the gripper, through the policy and the kinematic physics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.envs.board.functional import FunctionalBoard
from mistjax.hooks import Add
from mistjax.policies.load import load_policy


@pytest.mark.slow
def test_the_gradient_of_the_height_after_a_chunk_is_the_slope_along_an_edit():
    policy, board = load_policy("checkpoints/board_pi0"), FunctionalBoard()
    drawn = board.draw_starts([7])
    first = jax.vmap(board.reset)(drawn.start)
    raw, _ = board.observe(first)
    words = jax.tree.map(jnp.asarray, policy.encode_prompts(drawn.prompts))
    obs = policy.observe(raw, words)
    begin = jax.tree.map(lambda leaf: leaf[0], first)
    stack = policy.spec.stacks["action"]
    vector = np.random.default_rng(0).normal(size=(stack.depth, stack.width)).astype(np.float32)
    edit = Add("action.resid", vector=jnp.asarray(vector))

    @jax.jit
    def height(strength):
        sample = policy.sample(obs, jax.random.key(0), edits=(edit.replace(strength=strength),))
        actions = policy.act(sample, raw)[0, : policy.spec.execute_steps]
        last, _ = jax.lax.scan(lambda s, a: (board.step(s, a), None), begin, actions)
        return 1e3 * last.body.gripper[2]  # millimetres

    at, apart = 0.1, 2e-2
    slope = (height(at + apart) - height(at - apart)) / (2 * apart)
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(jax.grad(height)(at), slope, rtol=0.05)
