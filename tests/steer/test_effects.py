"""Dose-response measures what a direction does, and not what noise does."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.policies import pi
from mistjax.steer import (
    Provenance,
    SteeringVector,
    control_responses,
    dose_response,
)
from mistjax.steer.effects import action_statistics

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)


@pytest.fixture
def lift(planted):
    """Writes what raises dz into the last layer of the action expert."""
    kernel = planted.variables["params"]["action_out_proj"]["kernel"][:, 2]
    direction = jnp.zeros((3, 16)).at[2].set(-kernel / jnp.linalg.norm(kernel))
    ones = jnp.zeros(3).at[2].set(1.0)
    provenance = Provenance(planted.spec.fingerprint, "by hand")
    return SteeringVector(direction, ones, ones, "action.resid", "action", provenance)


@pytest.fixture
def wide(planted):
    """The same policy with bounds that nothing hits."""
    preset = dataclasses.replace(planted.preset, action_low=(-9.0,) * 4, action_high=(9.0,) * 4)
    return planted.replace(preset=preset)


def test_a_direction_that_lifts_raises_dz_with_its_strength(wide, raw, lift, key):
    response = dose_response(wide, raw, lift, STRENGTHS, key)
    assert response.monotonicity("dz") == pytest.approx(1.0)
    effect, interval = response.effect("dz"), response.interval("dz")
    assert effect[2] == 0 and response.moved[2].max() == 0
    assert effect[-1] > 0 > effect[0] and interval[-1, 0] > 0 > interval[0, 1]
    assert (interval[:, 0] <= effect).all() and (effect <= interval[:, 1]).all()

    controls = control_responses(wide, raw, lift, STRENGTHS, key, controls=3)
    others = np.array([control.effect("dz")[-1] for control in controls])
    assert effect[-1] > others.mean() + others.std()
    assert all(control.moved[-1].mean() > 0 for control in controls)


def test_strengths_compile_once(wide, raw, lift, key):
    before = pi._sample._cache_size()
    dose_response(wide, raw, lift, np.linspace(-2, 2, 50).tolist(), key)
    assert pi._sample._cache_size() - before <= 1


def test_statistics_are_means_over_the_executed_steps(policy):
    actions = np.zeros((1, 6, 4), np.float32)
    actions[0, :4] = [0.3, 0.0, 0.4, -1.0]
    actions[0, 4:] = 9.0
    found = action_statistics(actions, policy.spec)
    assert found["speed"] == pytest.approx(0.5)
    assert found["dz"] == pytest.approx(0.4) and found["gripper"] == pytest.approx(-1.0)


def test_a_direction_without_effect_has_monotonicity_0(wide, raw, lift, key):
    response = dose_response(wide, raw, lift.replace(direction=0 * lift.direction), STRENGTHS, key)
    assert response.monotonicity("dz") == 0.0
    with pytest.raises(ValueError, match="no statistic 'torque'"):
        response.effect("torque")
