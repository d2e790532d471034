import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.test_util import check_grads

from interop.bridge import call_torch, differentiable

SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)


def test_a_torch_function_gives_the_same_inside_and_outside_of_jit():
    def run(x):
        return call_torch(torch.sin, SHAPE, x)

    x = jnp.arange(3.0)
    np.testing.assert_array_equal(run(x), jax.jit(run)(x))


def test_bfloat16_passes_through_a_callback():
    shape = jax.ShapeDtypeStruct((3,), jnp.bfloat16)
    doubled = jax.jit(lambda x: call_torch(lambda t: t * 2, shape, x))(jnp.ones(3, jnp.bfloat16))
    assert doubled.dtype == jnp.bfloat16
    assert (doubled == 2).all()


def test_gradients_are_those_of_torch_and_integers_have_none():
    def fn(x, index):
        return {"y": torch.sin(x) * x.sum(), "index": index + 1}

    shapes = {"y": SHAPE, "index": jax.ShapeDtypeStruct((), jnp.int32)}
    run = differentiable(fn, shapes)

    def loss(x):
        return jnp.sum(run(x, jnp.int32(4))["y"] ** 2)

    x = jnp.array([0.3, -0.4, 1.2])
    check_grads(loss, (x,), order=1, modes=["rev"], eps=1e-2, rtol=1e-2)
    np.testing.assert_allclose(jax.grad(loss)(x), jax.jit(jax.grad(loss))(x), rtol=1e-6)


def test_an_input_that_does_not_matter_has_gradient_zero():
    run = differentiable(lambda x, unused: x * 2, SHAPE)
    grad = jax.grad(lambda u: run(jnp.ones(3), u).sum())(jnp.ones(5))
    np.testing.assert_array_equal(grad, np.zeros(5))


def test_rows_that_are_mapped_over_are_one_call():
    calls = []

    def fn(x, scale):
        calls.append(len(x))
        return {"y": x.square() * scale[:, None]}

    shapes = {"y": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    apply = differentiable(fn, shapes, rows=True)
    scale, x = jnp.array([1.0, 2.0]), jnp.arange(30.0).reshape(5, 2, 3)

    def one(x):
        return apply(x, scale)["y"].sum()

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(one)))(x)
    assert set(calls) == {10}
    np.testing.assert_allclose(values, (x**2 * scale[None, :, None]).sum((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(slopes, 2 * x * scale[None, :, None], rtol=1e-6)
    nested = jax.jit(jax.vmap(jax.vmap(one)))(x[None])
    np.testing.assert_allclose(nested[0], values, rtol=1e-6)
