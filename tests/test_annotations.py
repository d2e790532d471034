"""The tests check array annotations at run time; without this every other test checks less."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from mistjax.hooks.sites import reduce_tokens


def test_an_array_of_the_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError):
        reduce_tokens(jnp.zeros((2, 3, 4)), jnp.ones((2, 5), bool), "mean")
