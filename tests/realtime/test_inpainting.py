"""Guidance of the flow against its formula, written out in NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.inpainting import Pending, guided, soft_weights, strength
from mistjax.policies import pi as pi_module


def formula(delay, executed, horizon):
    out = []
    for i in range(horizon):
        if i < delay:
            out.append(1.0)
        elif i < horizon - executed:
            c = (horizon - executed - i) / (horizon - executed - delay + 1)
            out.append(c * (math.e**c - 1) / (math.e - 1))
        else:
            out.append(0.0)
    return out


@pytest.mark.parametrize(("delay", "executed"), [(0, 4), (1, 2), (2, 4), (3, 3), (4, 4)])
def test_weights_are_the_formula_s(delay, executed):
    found = soft_weights(delay, executed, 8)
    np.testing.assert_allclose(found, formula(delay, executed, 8), atol=1e-6)


@pytest.mark.parametrize("time", [1.0, 0.9, 0.5, 0.1])
def test_guidance_is_the_formula_s(time):
    done = 1 - time
    wanted = 5.0
    if done:
        wanted = min((1 - done) / done * (done**2 + (1 - done) ** 2) / (1 - done) ** 2, 5.0)
    assert strength(jnp.float32(time), jnp.array([5.0]))[0] == pytest.approx(wanted, rel=1e-5)


def field(x):
    """A velocity whose Jacobian is known: v = M x, mixing the actions of a chunk."""
    mix = jnp.asarray([[0.5, 0.2], [0.0, -0.3]], jnp.float32)
    return jnp.einsum("hk,bka->bha", mix, x), ()


@pytest.mark.parametrize("variant", ["jacobian", "identity", "closed"])
def test_a_guided_velocity_is_the_formula_s(variant):
    x = np.array([[[1.0], [-2.0]]], np.float32)
    target, weight, t = np.array([[[0.5], [3.0]]], np.float32), np.array([[1.0, 0.4]]), 0.6
    pending = Pending(
        jnp.asarray(target), jnp.asarray(weight, jnp.float32), jnp.array([5.0]), variant
    )
    v, _ = guided(field, jnp.asarray(x), jnp.float32(t), pending)
    mix = np.array([[0.5, 0.2], [0.0, -0.3]])
    plain = mix @ x[0]
    error = weight[0][:, None] * (target[0] - (x[0] - t * plain))
    scale = min(t / (1 - t) * ((1 - t) ** 2 + t**2) / t**2, 5.0)
    step = {
        "jacobian": scale * (np.eye(2) - t * mix).T @ error,
        "identity": scale * error,
        "closed": error / t,
    }[variant]
    np.testing.assert_allclose(v[0], plain - step, rtol=1e-5)


def pending_of(policy, batch, weight, variant="jacobian"):
    shape = (batch, policy.config.action_horizon, policy.config.action_dim)
    target = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), shape[:2])
    return Pending(jnp.asarray(target), weight, jnp.full(batch, 5.0), variant)


@pytest.mark.parametrize("pi05", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_off_it_is_the_plain_sampler_bit_for_bit(make_policy, raw, pi05):
    policy, key = make_policy(pi05), jax.random.key(3, impl="threefry2x32")
    obs = policy.prepare(raw(2))
    plain = policy.sample(obs, key).actions
    off = dataclasses.replace(obs, pending=pending_of(policy, 2, 0.0))
    assert np.asarray(policy.sample(off, key).actions).tobytes() == np.asarray(plain).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["jacobian", "identity", "closed"])
@pytest.mark.parametrize("pi05", [False, True])
def test_the_new_chunk_comes_nearer_to_what_is_executed(make_policy, raw, pi05, variant):
    policy, key = make_policy(pi05), jax.random.key(3, impl="threefry2x32")
    obs = policy.prepare(raw(2))
    pending = pending_of(policy, 2, soft_weights(2, 4, 8), variant)
    guided = policy.sample(dataclasses.replace(obs, pending=pending), key).actions
    plain = policy.sample(obs, key).actions
    away = np.abs(np.asarray(guided - pending.actions))[:, :2].mean()
    assert away < 0.5 * np.abs(np.asarray(plain - pending.actions))[:, :2].mean()
    if variant == "closed":
        assert away < 1e-5


@pytest.mark.slow
def test_the_delay_is_no_constant_of_the_program(policy, raw):
    obs, key = policy.prepare(raw(1)), jax.random.key(3, impl="threefry2x32")
    before = None
    for delay in range(5):
        pending = pending_of(policy, 1, soft_weights(delay, 4, 8))
        policy.sample(dataclasses.replace(obs, pending=pending), key)
        before = before or pi_module._sample._cache_size()
    assert pi_module._sample._cache_size() == before
