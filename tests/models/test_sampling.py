"""Euler steps from noise to actions, and the names of token positions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.config import PI0, PI05, TINY, TINY_FAST
from mistjax.models.pi0 import Pi0
from mistjax.models.sampling import denoise, prefill
from mistjax.models.stacks import token_layouts


@jax.jit
def three_steps(variables, obs, noise):
    """The sampler, and the same steps one by one."""
    model = Pi0(TINY)
    prefix = prefill(model, variables, obs)
    sampled = denoise(model, variables, prefix, obs.state, noise, num_steps=3)
    x, velocities = noise, []
    for t in (1.0, 2 / 3, 1 / 3):
        inputs = prefix.cache, prefix.valid, obs.state, x, jnp.full(2, t)
        velocity, _ = model.apply(variables, *inputs, method=Pi0.velocity)
        velocities.append(velocity)
        x = x - velocity / 3
    return sampled, x, jnp.stack(velocities)


def test_sampling_is_euler_from_one_to_zero(pi_variables, observation):
    shape = (2, TINY.action_horizon, TINY.action_dim)
    noise = jax.random.normal(jax.random.key(0), shape)
    (actions, taps, velocities), x, expected = three_steps(
        pi_variables(TINY), observation(TINY), noise
    )
    np.testing.assert_allclose(actions, x, atol=2e-4)
    np.testing.assert_allclose(velocities, expected, atol=2e-4)
    assert not taps


@pytest.mark.parametrize(
    ("config", "stack", "selector", "expected"),
    [
        (PI0, "vlm", "left_wrist_0_rgb", (256, 512)),
        (PI0, "vlm", "text", (768, 816)),
        (PI0, "vision", "image", (0, 768)),
        (PI0, "action", "state", (0, 1)),
        (PI0, "action", "action", (1, 51)),
        (PI05, "action", "action", (0, 50)),
        (TINY_FAST, "action", "action", (0, 1)),
    ],
)
def test_token_positions_have_names(config, stack, selector, expected):
    assert token_layouts(config)[stack].select(selector) == expected


def test_pi05_has_no_state_token():
    layout = token_layouts(dataclasses.replace(TINY, pi05=True))["action"]
    assert layout.length == TINY.action_horizon
    with pytest.raises(ValueError, match="no segment 'state'"):
        layout.select("state")
