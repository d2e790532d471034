"""The tests check array annotations at run time; without this every other test checks less."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from mistjax.hooks.sites import reduce_tokens, split_site
from mistjax.models.normalize import NormStats


def test_an_array_of_the_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError):
        reduce_tokens(jnp.zeros((2, 3, 4)), jnp.ones((2, 5), bool), "mean")


def test_a_value_of_the_wrong_type_is_refused_where_no_array_is_named():
    with pytest.raises(TypeError, match="split_site"):
        split_site(3)


def test_a_pytree_made_with_arrays_of_the_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError):
        NormStats(mean=jnp.zeros(2), std=jnp.zeros(3))


def test_jax_rebuilds_pytrees_around_anything():
    stats = NormStats(mean=jnp.zeros(2), std=jnp.ones(2))
    assert jax.tree.map(jnp.shape, stats).mean == (2,)
    assert jax.eval_shape(lambda: stats).std.shape == (2,)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), stats)
    axes = jax.tree.map(lambda _: 0, stats)
    assert jax.vmap(lambda s: s.std.sum(), in_axes=(axes,))(stacked).shape == (2,)
