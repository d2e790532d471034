"""What is read off tokens agrees with the model's own attention."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute import ActionValue, attribute
from mistjax.attribute.registry import OF_TOKENS
from mistjax.attribute.tokens import action_attention
from mistjax.hooks.sites import Tap
from mistjax.policies import BOARD, random_policy


@pytest.fixture(scope="module")
def readout(pi):
    return ActionValue(jnp.ones((pi.config.action_horizon, pi.config.action_dim)))


@pytest.fixture(
    scope="module",
    params=[
        "pi0",
        pytest.param("pi0.5", marks=pytest.mark.slow),
        pytest.param("as many keys as heads", marks=pytest.mark.slow),
    ],
)
def variant(request, pi, tokenizer):
    if request.param == "pi0":
        return pi
    config = dataclasses.replace(pi.config, pi05=request.param == "pi0.5")
    if request.param.startswith("as many"):
        more = [dataclasses.replace(e, num_kv_heads=e.num_heads) for e in config.experts]
        config = dataclasses.replace(config, vlm=more[0], action_expert=more[1])
    return random_policy(config, tokenizer, BOARD)


def test_the_weights_are_those_that_the_heads_are_made_with(variant, pi_obs, key):
    """Values of the cache that are larger by 1 add to the last layer's heads what attends to it."""
    resid, heads = Tap("action.resid"), Tap("action.attn_heads", (-1,))
    prefix = variant.prefill(pi_obs)
    keys, values = prefix.cache
    more = dataclasses.replace(prefix, cache=(keys, values.at[-1].add(1.0)))
    plain, other = (
        variant.sample(pi_obs, key, taps=(resid, heads), prefix=p) for p in (prefix, more)
    )
    added = (other.taps[str(heads)] - plain.taps[str(heads)])[0, 0].mean(-1)  # [B,T,N]
    weights = action_attention(variant, pi_obs, prefix, plain)
    np.testing.assert_allclose(weights.sum(4), 1, rtol=1e-5)
    to_prefix = weights[0, -1, :, :, : prefix.valid.shape[1]].sum(2)
    np.testing.assert_allclose(to_prefix, added, atol=1e-5)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_every_method_has_a_number_for_every_patch_word_and_state(name, pi, pi_obs, key, readout):
    found = attribute(name, pi, pi_obs, key, readout)
    grid = (2, pi.config.image_size // pi.patch[0], pi.config.image_size // pi.patch[1])
    assert [image.shape for image in found.images.values()] == [grid] * len(pi_obs.images)
    assert found.text.shape == pi_obs.tokenized_prompt.shape
    assert found.state.shape == pi_obs.state.shape
    assert not found.text[~np.asarray(pi_obs.tokenized_prompt_mask)].any()
    expected = readout(pi.sample(pi_obs, key))
    np.testing.assert_allclose(found.value, expected, rtol=1e-4, atol=1e-5)


def test_attention_to_all_inputs_is_below_one_and_none_goes_to_an_absent_camera(
    pi, pi_obs, key, readout
):
    found = attribute("attention_mass", pi, pi_obs, key, readout)
    absent = list(found.images.values())[1][1]
    assert not absent.any()
    total = sum(x.reshape(2, -1).sum(1) for x in (*found.images.values(), found.text, found.state))
    assert ((total > 0) & (total < 1)).all()


def test_ablating_nothing_changes_nothing_and_an_absent_camera_neither(pi, pi_obs, key, readout):
    found = attribute("cache_ablation", pi, pi_obs, key, readout)
    assert not list(found.images.values())[1][1].any()
    assert next(iter(found.images.values())).any()
    assert found.state.any()


def test_a_masked_camera_is_one_that_is_absent(pi, pi_obs, key, readout):
    found = attribute("camera_masking", pi, pi_obs, key, readout)
    name, other = pi_obs.images
    there = {**pi_obs.image_masks, name: jnp.zeros(2, bool)}
    without = readout(pi.sample(dataclasses.replace(pi_obs, image_masks=there), key))
    lost = found.images[name].reshape(2, -1)
    np.testing.assert_allclose(lost.sum(1), found.value - without, rtol=1e-3, atol=1e-5)
    assert lost[0, 0] and (lost == lost[:, :1]).all()
    assert not found.images[other][1].any()  # it was absent already


def test_what_has_no_tokens_to_look_at_is_refused(linear, linear_obs, pi, pi_obs, key, readout):
    action = ActionValue(jnp.array([[1.0, 0.0]]))
    with pytest.raises(ValueError, match="choose another method"):
        attribute("attention_mass", linear, linear_obs, key, action)
    with pytest.raises(ValueError, match="choose occlusion"):
        attribute("cache_ablation", linear, linear_obs, key, action)
    with pytest.raises(ValueError, match="pi0-FAST"):
        attribute("token_norm", linear, linear_obs, key, action)
    with pytest.raises(ValueError, match="a token is a vision patch"):
        attribute("token_norm", pi, pi_obs, key, readout, patch=(1, 1))
