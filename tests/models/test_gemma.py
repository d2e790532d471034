"""The pieces of the Gemma stack, each against what defines it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.config import TINY, GemmaConfig
from mistjax.models.gemma import Gemma, RMSNorm, apply_rope, grouped_attention

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_rope_keeps_lengths_and_depends_on_distance_only():
    q, k, positions = normal(1, 1, 2, 8), normal(1, 1, 2, 8), jnp.array([[3]])

    def product(i, j):
        return jnp.sum(apply_rope(q, positions + i) * apply_rope(k, positions + j), axis=-1)

    np.testing.assert_allclose(product(7, 2), product(5, 0), atol=1e-5)
    assert np.abs(product(7, 2) - product(7, 3)).max() > 1e-3
    rotated = apply_rope(q, positions)
    np.testing.assert_allclose(
        jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5
    )
    np.testing.assert_array_equal(apply_rope(q, jnp.array([[0]])), q)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_attention_is_attention_with_repeated_keys(kv_heads):
    q, k, v = normal(2, 3, 4, 8), normal(2, 5, kv_heads, 8), normal(2, 5, kv_heads, 8)
    mask = jnp.asarray(RNG.integers(0, 2, (2, 3, 5)).astype(bool)).at[..., 0].set(True)
    keys, values = (jnp.repeat(x, 4 // kv_heads, axis=2) for x in (k, v))
    logits = jnp.einsum("btnh,bsnh->bnts", q, keys)
    weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf), axis=-1)
    expected = jnp.einsum("bnts,bsnh->btnh", weights, values)
    np.testing.assert_allclose(grouped_attention(q, k, v, mask), expected, atol=1e-5)


def test_rms_norm_with_a_condition_scales_shifts_and_gates():
    x, condition = normal(2, 3, 4), normal(2, 4)
    kernel, bias = normal(4, 12), normal(12)
    variables = {"params": {"Dense_0": {"kernel": kernel, "bias": bias}}}
    out, gate = RMSNorm().apply(variables, x, condition)
    scale, shift, expected_gate = jnp.split((condition @ kernel + bias[None])[:, None], 3, axis=-1)
    normed = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, normed * (1 + scale) + shift, atol=1e-5)
    np.testing.assert_allclose(gate, expected_gate, atol=1e-5)
    plain, none = RMSNorm().apply({"params": {"scale": jnp.ones(4)}}, x, None)
    np.testing.assert_allclose(plain, 2 * normed, atol=1e-5)
    assert none is None


@pytest.fixture(scope="module", params=[1, 4], ids=["grouped", "qkv in one"])
def stack(request):
    config = dataclasses.replace(TINY.vlm, num_kv_heads=request.param)
    module = Gemma((config,), 96, "float32", remat=False)
    x, positions = normal(1, 5, 32), jnp.arange(5)[None]
    mask = jnp.tril(jnp.ones((1, 5, 5), bool))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), [x], positions, mask, [None]))
    variables = jax.tree.map(lambda s: normal(*s.shape) * 0.2, shapes)
    return module, variables, (x, positions, mask)


def test_tokens_read_with_a_cache_are_tokens_read_at_once(stack):
    module, variables, (x, positions, mask) = stack

    @jax.jit
    def both(variables):
        (whole,), cache = module.apply(variables, [x], positions, mask, [None])
        (_,), first = module.apply(variables, [x[:, :3]], positions[:, :3], mask[:, :3, :3], [None])
        (rest,), joined = module.apply(
            variables, [x[:, 3:]], positions[:, 3:], mask[:, 3:], [None], first
        )
        return whole[:, 3:], rest, cache, joined

    whole, rest, cache, joined = both(variables)
    np.testing.assert_allclose(rest, whole, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cache, joined)


def test_equal_head_counts_share_one_qkv_array(stack):
    _, variables, _ = stack
    attention = variables["params"]["layers"]["attn"]
    if "qkv_einsum" in attention:
        assert attention["qkv_einsum"]["w"].shape == (3, 3, 4, 32, 8)
        assert "q_einsum" not in attention
    else:
        assert attention["q_einsum"]["w"].shape == (3, 4, 32, 8)
        assert attention["kv_einsum"]["w"].shape == (3, 2, 1, 32, 8)


def test_an_expert_that_does_not_run_costs_and_changes_nothing():
    small = GemmaConfig(16, 2, 32, num_heads=2, num_kv_heads=1, head_dim=8)
    pair, alone = Gemma((small, small), 9, "float32", False), Gemma((small,), 9, "float32", False)
    x, positions, mask = normal(1, 3, 16), jnp.arange(3)[None], jnp.ones((1, 3, 3), bool)
    one = jax.eval_shape(lambda: alone.init(jax.random.key(0), [x], positions, mask, [None]))
    one = jax.tree.map(lambda s: normal(*s.shape) * 0.2, one)
    (expected,), _ = alone.apply(one, [x], positions, mask, [None])
    (given, skipped), _ = pair.apply(one, [x, None], positions, mask, [None, None])
    assert skipped is None
    np.testing.assert_array_equal(given, expected)
