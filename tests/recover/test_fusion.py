"""What fusion promises, whatever the steered chunk is."""

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.recover.fusion import FusionLimits, fuse, latch_gripper

LIMITS = FusionLimits(jnp.array([0.2, 0.4, 0.0]), jnp.array([False, False, True]))


def chunk(seed, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(4, 6, 3)) * scale, jnp.float32)


def test_weight_0_gives_the_original_bit_for_bit():
    original = chunk(0).at[..., 2].set(1.0)
    assert np.array_equal(fuse(original, chunk(1), jnp.zeros(4), LIMITS), original)


@pytest.mark.parametrize("weight", [0.3, 1.0, 50.0])
def test_no_value_moves_further_than_its_cap(weight):
    original = chunk(0)
    fused = fuse(original, chunk(1, scale=100.0), jnp.full(4, weight), LIMITS)
    moved = np.abs(np.asarray(fused - original))[..., :2]
    assert (moved <= np.asarray(LIMITS.cap)[:2] + 1e-6).all()
    assert moved.max() > 0.39


def test_within_the_cap_a_full_weight_gives_the_steered_chunk():
    original = chunk(0)
    steered = original + 0.1
    fused = fuse(original, steered, jnp.ones(4), LIMITS)
    np.testing.assert_allclose(fused[..., :2], steered[..., :2], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_steered_value_that_is_not_finite_leaves_the_original(bad):
    original = chunk(0)
    steered = chunk(1).at[0, 0, 0].set(bad).at[1, :, 2].set(bad)
    fused = fuse(original, steered, jnp.ones(4), LIMITS)
    assert np.isfinite(fused).all()
    assert fused[0, 0, 0] == original[0, 0, 0]


def test_the_gripper_switches_at_most_once_a_chunk():
    steered = jnp.array([1.0, -1, 1, -1, 1, 1]).reshape(1, 6, 1)
    latched = latch_gripper(jnp.ones((1, 6, 1)), steered, jnp.ones(1))
    assert latched[0, :, 0].tolist() == [1, -1, -1, -1, -1, -1]


def test_each_row_has_its_own_weight():
    original, steered = chunk(0), chunk(0) + 0.1
    fused = fuse(original, steered, jnp.array([0.0, 1.0, 0.0, 1.0]), LIMITS)
    changed = np.asarray(fused != original)[..., :2].all(axis=(1, 2))
    assert changed.tolist() == [False, True, False, True]


def test_a_cap_outside_0_to_1_is_refused(policy):
    with pytest.raises(ValueError, match="share of the action range"):
        FusionLimits.of(policy.spec, 1.5, policy.config.action_dim)


def test_caps_are_in_model_units_and_padding_may_not_move(policy):
    limits = FusionLimits.of(policy.spec, 0.25, 5)
    np.testing.assert_allclose(limits.cap, [0.5, 0.5, 0.5, 0.5, 0.0], rtol=1e-5)
    assert limits.gripper.tolist() == [False, False, False, True, False]
