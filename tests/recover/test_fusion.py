"""What fusion promises, whatever the steered chunk and the weight are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mistjax.policies import PRESETS
from mistjax.recover.fusion import FusionLimits, fuse, latch_gripper

LOW, HIGH = np.array([-1.0, -2.0, -0.5], np.float32), np.array([1.0, 1.0, 1.5], np.float32)
GRIPPER = np.array([False, False, True])
SHAPE = (2, 5, 3)
WEIGHTS = [0.0, 0.25, 0.5, 0.75, 1.0, 7.0]

LARGE = float(np.float32(3e38))
anything = st.floats(width=32) | st.sampled_from(
    [np.nan, np.inf, -np.inf, LARGE, -LARGE, 0.0, -0.0]
)
originals = arrays.arrays(np.float32, SHAPE, elements=st.floats(-3, 3, width=32))
chunks = arrays.arrays(np.float32, SHAPE, elements=anything)
weights = arrays.arrays(np.float32, 2, elements=st.sampled_from(WEIGHTS))
caps = arrays.arrays(np.float32, 3, elements=st.sampled_from([0.0, 0.125, 1.0, 1e6]))
jitted = jax.jit(fuse)
properties = settings(deadline=None, max_examples=60, derandomize=True)


def limits_of(cap):
    return FusionLimits(jnp.asarray(cap), *map(jnp.asarray, (GRIPPER, LOW, HIGH)))


def fused_of(original, steered, weight, cap):
    return np.asarray(jitted(original, steered, weight, limits_of(cap)))


@properties
@given(originals, chunks, weights, caps)
def test_every_fused_value_is_finite_and_within_the_cap(original, steered, weight, cap):
    fused = fused_of(original, steered, weight, cap)
    assert np.isfinite(fused).all()
    moved = np.abs(fused.astype(np.float64) - original)
    assert (moved <= cap * (1 + 1e-6) + 1e-6)[..., ~GRIPPER].all()


@properties
@given(originals, chunks, weights, caps)
def test_no_fused_value_leaves_the_bounds_further_than_the_original(original, steered, weight, cap):
    fused = fused_of(original, steered, weight, cap)
    assert (fused >= np.minimum(LOW, original)).all()
    assert (fused <= np.maximum(HIGH, original)).all()


@properties
@given(originals, chunks, weights, caps)
def test_the_gripper_is_that_of_one_side_and_moves_at_most_once(original, steered, weight, cap):
    fused = fused_of(original, steered, weight, cap)[..., 2]
    for row in range(2):
        if weight[row] > 0.5 and cap[2] > 0:
            side = fused[row] >= 0.5  # the middle of its bounds
            assert np.sum(side[1:] != side[:-1]) <= 1
        else:
            assert np.array_equal(fused[row], original[row, :, 2])


@properties
@given(originals, chunks, weights)
def test_a_cap_or_a_weight_of_0_gives_the_original_bit_for_bit(original, steered, weight):
    for fused in (
        fused_of(original, steered, weight, np.zeros(3, np.float32)),
        fused_of(original, steered, np.zeros(2, np.float32), np.full(3, 1e6, np.float32)),
    ):
        assert np.array_equal(fused.view(np.uint32), original.view(np.uint32))


@properties
@given(originals, chunks, chunks, weights, caps)
def test_a_batch_element_does_not_depend_on_its_neighbours(original, steered, other, weight, cap):
    changed = np.stack([steered[0], other[1]])
    first = fused_of(original, steered, weight, cap)[0]
    assert np.array_equal(first, fused_of(original, changed, weight, cap)[0])


def test_within_cap_and_bounds_a_full_weight_gives_the_steered_chunk():
    original = np.random.default_rng(0).uniform(-0.4, 0.4, SHAPE).astype(np.float32)
    steered = original + np.float32(0.1)
    fused = fused_of(original, steered, np.ones(2, np.float32), np.full(3, 0.2, np.float32))
    np.testing.assert_allclose(fused, steered, atol=1e-6)


def test_a_weight_that_is_not_a_number_leaves_the_original():
    original, steered = np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    weight = np.array([np.nan, 1.0], np.float32)
    fused = fused_of(original, steered, weight, np.full(3, 0.5, np.float32))
    assert (fused[0] == 0).all()
    assert (fused[1] == [0.5, 0.5, 1.0]).all()


def test_the_gripper_switches_at_most_once_a_chunk():
    command = jnp.array([1.0, -1, 1, -1, 1, 1]).reshape(1, 6, 1)
    assert latch_gripper(command)[0, :, 0].tolist() == [1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("cap", [1.5, -0.1, np.nan, np.inf])
def test_a_cap_outside_0_to_1_is_refused(policy, cap):
    with pytest.raises(ValueError, match="share of the action range"):
        FusionLimits.of(policy.spec, cap, policy.config.action_dim)


def test_a_model_of_fewer_dimensions_than_the_action_is_refused(policy):
    with pytest.raises(ValueError, match="at least the 4 dimensions"):
        FusionLimits.of(policy.spec, 0.5, 3)


def test_limits_are_in_model_units_and_padding_may_not_move(policy):
    limits = FusionLimits.of(policy.spec, 0.25, 5)
    np.testing.assert_allclose(limits.cap, [0.5, 0.5, 0.5, 0.5, 0.0], rtol=1e-5)
    assert limits.gripper.tolist() == [False, False, False, True, False]
    np.testing.assert_allclose(limits.low, [-1, -1, -1, -1, 0], rtol=1e-5)
    np.testing.assert_allclose(limits.high, [1, 1, 1, 1, 0], rtol=1e-5)


def test_a_scale_that_is_negative_or_0_gives_limits_all_the_same(policy):
    spec = dataclasses.replace(
        policy.spec, action_scale=(-2.0, 0.0, 1.0, 1.0), action_offset=(1.0, 0.0, None, 0.5)
    )
    limits = FusionLimits.of(spec, 0.5, 4)
    assert limits.cap.tolist() == [0.5, 0.0, 1.0, 1.0]
    assert limits.low.tolist() == [0.0, -np.inf, -np.inf, -1.5]
    assert limits.high.tolist() == [1.0, np.inf, np.inf, 0.5]


@pytest.mark.parametrize("name", ["board", "pi0_libero", "pi05_libero", "pi0_droid", "pi0_aloha"])
def test_the_bounds_in_model_units_are_those_that_finish_enforces(policy, name):
    """What is fused at a bound is finished at that bound, up to what the state adds."""
    from mistjax.policies import Sample
    from mistjax.policies.pi import PiPolicy

    preset = PRESETS[name]
    rng = np.random.default_rng(0)
    stats = type(policy.norm_stats["state"]).of(rng.normal(0.1, 0.7, (50, preset.action_dim)))
    robot = PiPolicy(
        dataclasses.replace(policy.config, action_dim=preset.action_dim),
        policy.variables,
        policy.tokenizer,
        {"state": stats, "actions": stats},
        preset,
        name,
    )
    limits = FusionLimits.of(robot.spec, 0.5, preset.action_dim)
    keys = (preset.state_key,) if isinstance(preset.state_key, str) else preset.state_key
    raw = [dict.fromkeys(keys, np.zeros(preset.state_dim // len(keys), np.float32))]
    known = [at is not None for at in robot.spec.action_offset]
    assert known == [not follows for follows in preset.delta or (False,) * preset.action_dim]
    for bound, expected in ((limits.low, preset.action_low), (limits.high, preset.action_high)):
        chunk = jnp.where(jnp.isfinite(bound), bound, 0.0)
        sample = Sample(jnp.broadcast_to(chunk, (1, 2, preset.action_dim)), {}, {})
        free = np.asarray(robot.finish(sample, raw))[0, 0][known]
        ends = np.array([preset.action_low, preset.action_high])[:, known]
        order = np.array(expected)[known]
        flipped = ends.sum(0) - order  # a negative scale swaps the two
        gap = np.minimum(np.abs(free - order), np.abs(free - flipped))
        assert (gap < 1e-4).all()
