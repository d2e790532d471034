"""How a flow policy reacts when what it rests on is taken away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.sampling import Prefix
from mistjax.policies.grounding import DIAGNOSTICS, Grounded, ablated


def prefix_of(cache):
    return Prefix(
        (cache, 2 * cache), jnp.ones(cache.shape[1:3], bool), jnp.zeros((*cache.shape[1:3], 1)), {}
    )


def test_the_most_influential_tokens_of_a_segment_become_its_mean():
    cache = jax.random.normal(jax.random.key(0), (2, 3, 8, 1, 4))
    influence = jnp.tile(jnp.array([9.0, 1, 5, 2, 4, 3, 8, 7]), (3, 1))
    prefix = dataclasses.replace(prefix_of(cache), valid=jnp.ones((3, 8), bool).at[2, 2].set(False))
    other, chosen = ablated(prefix, influence, (1, 6), 0.4)
    np.testing.assert_array_equal(np.flatnonzero(chosen[0]), [2, 4])
    np.testing.assert_array_equal(np.flatnonzero(chosen[2]), [4, 5])  # 2 is no token there
    for before, after in zip(prefix.cache, other.cache, strict=True):
        np.testing.assert_allclose(after[:, 0, 4], before[:, 0, 1:6].mean(1), rtol=1e-5)
        mean = before[:, 2, jnp.array([1, 3, 4, 5])].mean(1)
        np.testing.assert_allclose(after[:, 2, 5], mean, rtol=1e-5)
        kept = np.flatnonzero(~np.asarray(chosen[0]))
        np.testing.assert_array_equal(after[:, 0, kept], before[:, 0, kept])


def test_the_actions_are_the_bare_policys_and_every_row_is_its_own(pi_policy, raw):
    grounded = Grounded(pi_policy)
    bright = raw[0]
    dark = {key: x * 0 if "image" in key else x for key, x in bright.items()}
    obs = pi_policy.prepare([bright, dark])
    key = jax.random.split(jax.random.key(0), 2)
    sample = grounded.sample(obs, key)
    np.testing.assert_array_equal(sample.actions, pi_policy.sample(obs, key).actions)
    cameras = len(pi_policy.config.image_keys)
    values = np.asarray(sample.aux["grounding"])
    assert values.shape == (2, (cameras + 1) * len(DIAGNOSTICS) + 1) and np.isfinite(values).all()
    other = pi_policy.prepare([bright, bright])
    again = np.asarray(grounded.sample(other, key).aux["grounding"])
    np.testing.assert_allclose(values[0], again[0], rtol=1e-3, atol=1e-3)
    assert np.abs(values[1] - again[1]).max() > 1e-2


def test_a_policy_without_a_velocity_field_is_refused(fast_policy):
    with pytest.raises(ValueError, match="no velocity field"):
        Grounded(fast_policy)
