"""What is drawn is the same whatever JAX is set to, and what `jax.random` draws by default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.draws import categorical, element_keys, normal

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 500)), jnp.float32)
KEY = jax.random.key(7, impl="threefry2x32")


def drawn():
    keys = element_keys(KEY, 3)
    noise = jax.jit(jax.vmap(lambda key: normal(key, (6, 5))))(keys)
    chosen = jax.jit(jax.vmap(categorical))(keys, LOGITS)
    return jax.device_get((jax.random.key_data(keys), noise, chosen))


@pytest.fixture(scope="module")
def default():
    """What `jax.random` draws as it is set by default."""
    with jax.enable_x64(False), jax.threefry_partitionable(True):
        keys = jax.random.split(KEY, 3)
        noise = jax.vmap(lambda key: jax.random.normal(key, (6, 5)))(keys)
        chosen = jax.vmap(jax.random.categorical)(keys, LOGITS)
        return jax.device_get((jax.random.key_data(keys), noise, chosen))


@pytest.mark.parametrize(
    ("x64", "partitionable"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_draws_do_not_depend_on_how_jax_is_set(default, x64, partitionable):
    with jax.enable_x64(x64), jax.threefry_partitionable(partitionable):
        for mine, expected in zip(drawn(), default, strict=True):
            assert mine.dtype == expected.dtype
            np.testing.assert_array_equal(mine, expected)


def test_keys_that_a_batch_cannot_use_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) keys for a batch of 2"):
        element_keys(jax.random.split(KEY, 3), 2)
    for other in (jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0)):
        with pytest.raises(ValueError, match="impl='threefry2x32'"):
            element_keys(other, 2)
