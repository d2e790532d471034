"""Clean activations restore the clean behaviour, as far as they carry it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute import ActionValue
from mistjax.attribute.patching import patch_heads, patch_layers, patch_sweep, patch_tokens


@pytest.fixture(scope="module")
def readout(pi):
    return ActionValue(jnp.ones((pi.config.action_horizon, pi.config.action_dim)))


@pytest.fixture(scope="module")
def corrupted(pi_obs):
    """Other pictures and another state, the same words."""
    images = {name: -image for name, image in pi_obs.images.items()}
    return dataclasses.replace(pi_obs, images=images, state=pi_obs.state + 1)


@pytest.fixture(scope="module")
def swept(pi, pi_obs, corrupted, key, readout):
    """The action expert's residual stream: all of it, each layer alone, nothing."""
    stack = pi.spec.stacks["action"]
    layers = jnp.eye(stack.depth)
    gates = jnp.concatenate([jnp.ones((1, stack.depth)), layers, jnp.zeros((1, stack.depth))])
    masks = jnp.broadcast_to(gates[:, :, None], (*gates.shape, stack.layout.length))
    return patch_sweep(pi, pi_obs, corrupted, key, readout, "action.resid", masks)


def test_the_whole_residual_of_the_clean_run_restores_it(swept):
    """Up to the last bit of float32: the clean run is not part of the batch."""
    np.testing.assert_allclose(swept.patched[0], swept.clean, rtol=1e-6)
    np.testing.assert_allclose(swept.share[0], 1, rtol=1e-6)


def test_the_last_layer_is_enough_and_the_first_is_not(swept):
    np.testing.assert_array_equal(swept.patched[-2], swept.patched[0])
    assert (jnp.abs(swept.share[1] - 1) > 1e-3).all()


def test_patching_nothing_is_the_corrupted_run(swept, pi, corrupted, key, readout):
    np.testing.assert_array_equal(swept.patched[-1], swept.corrupted)
    np.testing.assert_allclose(
        swept.corrupted, readout(pi.sample(corrupted, key)), rtol=1e-4, atol=1e-5
    )
    assert (jnp.abs(swept.clean - swept.corrupted) > 1e-2).all()


def test_masks_of_another_size_are_refused(pi, pi_obs, corrupted, key, readout):
    with pytest.raises(ValueError, match=r"action.resid has 3 layers and 5 tokens"):
        patch_sweep(pi, pi_obs, corrupted, key, readout, "action.resid", jnp.ones((1, 3, 4)))


@pytest.mark.slow
def test_layers_tokens_and_heads_are_masks_of_one_sweep(pi, pi_obs, corrupted, key, readout):
    stack = pi.spec.stacks["vlm"]
    args = (pi, pi_obs, corrupted, key, readout)
    layers = patch_layers(*args, "vlm.mlp_out")
    tokens = patch_tokens(*args, "vlm.mlp_out")
    heads = patch_heads(*args, "vlm")
    assert layers.patched.shape == (stack.depth, 2)
    assert tokens.patched.shape == (stack.depth, stack.layout.length, 2)
    assert heads.patched.shape == (stack.depth, stack.heads, 2)
    # Of the last layer of the VLM only keys and values are read, and they come before its output.
    np.testing.assert_allclose(layers.share[-1], 0, atol=1e-4)
    np.testing.assert_allclose(heads.share[-1], 0, atol=1e-4)
    assert (jnp.abs(heads.share[0]) > 1e-6).all()
    padding = ~pi_obs.tokenized_prompt_mask
    words = tokens.share[:, -padding.shape[1] :]
    np.testing.assert_allclose(jnp.where(padding.T[None], words, 0), 0, atol=1e-4)
