"""What is replaced is replaced exactly there, and baselines are what they are called."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute.inputs import (
    Baseline,
    Inputs,
    Regions,
    blurred,
    grey,
    mean_colour,
    patch_sums,
    replaced,
)
from mistjax.policies import Policy

PATCH = (4, 4)


@pytest.fixture
def inputs(linear, linear_obs):
    return Inputs.of(linear, linear_obs)


class Wordless(Policy):
    """A policy without a tokenizer."""

    prepare = sample = finish = None


def test_replacing_nothing_changes_no_bit_and_everything_gives_the_baseline(
    linear, linear_obs, inputs
):
    start = Baseline().inputs(linear, linear_obs, inputs)
    for value, expected in ((0.0, inputs), (1.0, start)):
        got = replaced(inputs, start, Regions.full(inputs, PATCH, value), PATCH)
        close = {"rtol": 0, "atol": 0 if value == 0 else 1e-6}
        jax.tree.map(lambda a, b, c=close: np.testing.assert_allclose(a, b, **c), got, expected)


def test_one_patch_is_replaced_where_it_is(linear, linear_obs, inputs):
    regions = Regions.full(inputs, PATCH, 0.0)
    regions.images["wrist"] = regions.images["wrist"].at[0, 1, 0].set(1.0)
    start = Baseline(image="grey").inputs(linear, linear_obs, inputs)
    got = replaced(inputs, start, regions, PATCH)
    changed = np.asarray(got.images["wrist"] != inputs.images["wrist"]).any(axis=(0, 3))
    assert changed[4:, :4].all()
    assert changed.sum() == 16
    np.testing.assert_array_equal(got.images["front"], inputs.images["front"])


def test_baselines_of_pictures():
    picture = jax.random.uniform(jax.random.key(0), (1, 16, 12, 3), minval=-1)
    np.testing.assert_array_equal(grey(picture), 0)
    np.testing.assert_allclose(mean_colour(picture)[0, 3, 4], picture.mean(axis=(0, 1, 2)))
    assert blurred(picture).var() < 0.1 * picture.var()
    np.testing.assert_allclose(blurred(jnp.full_like(picture, 0.3)), 0.3, atol=1e-6)


def test_the_text_baseline_is_the_padding_token_or_zero(linear, linear_obs, inputs):
    padding = Baseline(text="padding").inputs(linear, linear_obs, inputs).text
    np.testing.assert_array_equal(padding, jnp.broadcast_to(linear.table[0], padding.shape))
    assert not Baseline(text="zero").inputs(linear, linear_obs, inputs).text.any()


def test_patch_sums_leave_a_remainder_out():
    pixels = jnp.ones((1, 5, 9, 3))
    np.testing.assert_array_equal(patch_sums(pixels, PATCH), np.full((1, 1, 2), 48.0))


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match=r"image is one of .*blurred"):
        Baseline(image="black")


def test_a_policy_that_cannot_embed_words_is_refused(linear_obs):
    with pytest.raises(ValueError, match=r"it lacks tokenizer, embed_prompt, value_vectors"):
        Inputs.of(Wordless(), linear_obs)


def test_an_embedding_in_the_observation_is_used(linear_obs):
    words = jnp.ones((2, 8, 4))
    obs = dataclasses.replace(linear_obs, prompt_embedding=words)
    np.testing.assert_array_equal(Inputs.of(Wordless(), obs).text, words)
