import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop.arrays import to_jax, to_numpy, to_torch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_a_round_trip_keeps_values_dtype_and_shape(dtype):
    array = jnp.arange(6).reshape(2, 3).astype(dtype)
    back = to_jax(to_torch(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(back), np.asarray(array))
    np.testing.assert_array_equal(to_numpy(to_torch(array)), np.asarray(array))


def test_both_directions_share_memory_on_the_cpu():
    array = jnp.arange(64.0)
    tensor = to_torch(array)
    assert tensor.data_ptr() == array.unsafe_buffer_pointer()
    assert to_jax(tensor).unsafe_buffer_pointer() == tensor.data_ptr()


def test_a_transposed_tensor_keeps_its_values():
    tensor = torch.arange(6.0).reshape(2, 3).T
    np.testing.assert_array_equal(np.asarray(to_jax(tensor)), tensor.numpy())


def test_a_tensor_with_a_graph_is_detached():
    tensor = torch.ones(3, requires_grad=True) * 2
    np.testing.assert_array_equal(np.asarray(to_jax(tensor)), [2, 2, 2])


def test_numbers_and_numpy_arrays_become_tensors():
    assert to_torch(0.5).item() == 0.5
    assert to_torch(np.array([1.5], dtype=jnp.bfloat16)).dtype == torch.bfloat16


def test_a_64_bit_tensor_is_refused_rather_than_rounded():
    with pytest.raises(TypeError, match="int64"):
        to_jax(torch.arange(3))


def test_a_traced_array_is_refused():
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda x: x + to_torch(x).sum().item())(jnp.ones(2))
