"""What pi0 and pi0.5 read, what they ignore, and what they are trained on."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mistjax.models import pi0
from mistjax.models.config import TINY
from mistjax.models.pi0 import Pi0, attention_mask, flow_loss, flow_noise, time_embedding

GOLDENS = Path(__file__).parents[1] / "goldens" / "openpi"


def forward(config, inputs, continuation=None):
    variables, obs, x_t, t = inputs
    model = Pi0(config)
    cache, valid, hidden = model.apply(variables, obs, continuation, method=Pi0.prefill)
    velocity, _ = model.apply(variables, cache, valid, obs.state, x_t, t, method=Pi0.velocity)
    return velocity, hidden, cache


run = jax.jit(forward, static_argnums=0)


@pytest.fixture(scope="module")
def inputs(pi_variables, observation):
    rng = np.random.default_rng(1)
    x_t = jnp.asarray(rng.normal(size=(2, TINY.action_horizon, TINY.action_dim)), jnp.float32)
    return pi_variables(TINY), observation(TINY), x_t, jnp.array([0.3, 0.8])


def changed(inputs, **fields):
    variables, obs, x_t, t = inputs
    return variables, obs.replace(**fields), x_t, t


@pytest.mark.parametrize("model", ["pi0", "pi05"])
def test_the_parameter_tree_has_openpis_names(model):
    with np.load(GOLDENS / f"{model}.npz") as stored:
        names = {n.removeprefix("params/") for n in stored if n.startswith("params/")}
    config = dataclasses.replace(TINY, pi05=model == "pi05")
    ours = jax.eval_shape(lambda: pi0.init(config, jax.random.key(0)))["params"]
    assert set(flatten_dict(ours, sep="/")) == names


def test_bfloat16_is_near_float32(inputs):
    exact = run(TINY, inputs)[0]
    near, hidden, _ = run(dataclasses.replace(TINY, dtype="bfloat16"), inputs)
    assert hidden.dtype == jnp.bfloat16 and near.dtype == jnp.float32
    assert np.abs(near - exact).max() < 0.1 * np.abs(exact).max()


def test_padding_and_absent_cameras_are_never_read(inputs):
    _, obs, *_ = inputs
    prompt = jnp.where(obs.tokenized_prompt_mask, obs.tokenized_prompt, 7)
    absent = TINY.image_keys[-1]
    images = {**obs.images, absent: obs.images[absent].at[1].set(0.5)}
    other = changed(inputs, tokenized_prompt=prompt, images=images)
    np.testing.assert_array_equal(run(TINY, other)[0], run(TINY, inputs)[0])
    seen = {**obs.images, absent: obs.images[absent].at[0].set(0.5)}
    assert (run(TINY, changed(inputs, images=seen))[0][0] != run(TINY, inputs)[0][0]).all()


def test_rows_do_not_see_each_other(inputs):
    state = inputs[1].state.at[1].add(1.0)
    before, after = run(TINY, inputs)[0], run(TINY, changed(inputs, state=state))[0]
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1] != before[1]).all()


def test_prompt_embeddings_stand_in_for_their_tokens(inputs):
    variables, obs, *_ = inputs
    words = Pi0(TINY).apply(variables, obs.tokenized_prompt, method=Pi0.embed_tokens)
    other = changed(inputs, prompt_embedding=words, tokenized_prompt=obs.tokenized_prompt * 0)
    np.testing.assert_allclose(run(TINY, other)[0], run(TINY, inputs)[0], atol=1e-5)


def test_a_continuation_reads_the_prompt_and_the_prompt_does_not_read_it(inputs):
    text = jnp.array([[5, 6, 0], [7, 0, 0]])
    velocity, hidden, cache = run(TINY, inputs, text)
    plain_velocity, plain, plain_cache = run(TINY, inputs)
    valid = np.asarray(inputs[1].tokenized_prompt_mask)
    words = slice(TINY.num_image_tokens, TINY.prefix_len)
    np.testing.assert_allclose(hidden[:, words][valid], plain[:, words][valid], atol=1e-5)
    np.testing.assert_allclose(velocity, plain_velocity, atol=1e-5)
    assert jax.tree.map(jnp.shape, cache) == jax.tree.map(jnp.shape, plain_cache)
    later = run(TINY, inputs, text.at[0, 1].set(9))[1][:, TINY.prefix_len :]
    own = hidden[:, TINY.prefix_len :]
    np.testing.assert_array_equal(later[0, 0], own[0, 0])
    assert (later[0, 1] != own[0, 1]).any()


def test_a_mask_lets_blocks_see_themselves_and_earlier_valid_ones():
    valid = jnp.array([[True, True, False, True]])
    mask = attention_mask(valid, jnp.array([False, False, True, True]))
    assert mask[0].astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [1, 1, 0, 1]]


def test_time_is_embedded_in_geometric_periods():
    t, width = jnp.array([0.25]), 6
    periods = np.array([4e-3, np.sqrt(4e-3 * 4.0), 4.0])
    angle = 2 * np.pi * 0.25 / periods
    expected = np.concatenate([np.sin(angle), np.cos(angle)])[None]
    np.testing.assert_allclose(time_embedding(t, width), expected, atol=2e-4)


def test_noise_and_time_are_drawn_in_their_range():
    noise, t = flow_noise(jax.random.key(0), jnp.zeros((500, 2, 3)))
    assert noise.shape == (500, 2, 3) and abs(float(noise.std()) - 1) < 0.05
    assert float(t.min()) > 0 and float(t.max()) <= 1
    # Beta(1.5, 1) has mean 0.6: more training near the noise.
    assert abs(float(t.mean()) - 0.6) < 0.05


def test_the_loss_is_zero_for_the_true_velocity():
    rng = np.random.default_rng(0)
    noise, actions = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))
    assert not flow_loss(noise - actions, noise, actions).any()
    np.testing.assert_allclose(flow_loss(noise - actions + 2, noise, actions), 4.0, rtol=1e-5)
