"""A sweep in chunks is the sweep, and the chunk fits the budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute.batching import compiled, in_chunks, largest_chunk


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_of_any_size_give_every_entry_once(chunk):
    xs = jnp.arange(7.0)
    np.testing.assert_array_equal(in_chunks(lambda x: (x**2)[None], xs, chunk), xs[:, None] ** 2)


def test_compiled_traces_arrays_and_takes_the_rest_as_it_is():
    traced = []

    @compiled
    def scale(x, *, mode, factor):
        traced.append(mode)
        return x * factor["by"] if mode == "up" else x

    for by in (1.0, 2.0, 3.0):
        assert scale(jnp.ones(()), mode="up", factor={"by": np.float32([by])})[0] == by
    assert scale(jnp.ones(()), mode="down", factor={"by": 5.0}) == 1
    assert traced == ["up", "down"]


def test_the_largest_chunk_fits_the_budget():
    def sweep(x, chunk):
        return in_chunks(lambda shift: jnp.sort(jnp.sin(x + shift)).sum(), jnp.arange(64.0), chunk)

    def needs(chunk):
        program = jax.jit(lambda x: sweep(x, chunk)).lower(x).compile()
        return program.memory_analysis().temp_size_in_bytes

    x = jnp.ones(10_000)
    budget = 4 * needs(1)
    chunk = largest_chunk(sweep, budget, x)
    assert 1 < chunk < 64
    assert needs(chunk) <= 1.1 * budget
    with pytest.raises(ValueError, match="raise the budget"):
        largest_chunk(sweep, 1, x)
