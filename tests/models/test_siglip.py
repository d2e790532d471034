"""The vision tower sees patches, in reading order, each image for itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.config import TINY
from mistjax.models.siglip import DenseGeneral, Siglip

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tower():
    module = Siglip(TINY.siglip, 32, "float32", remat=False)
    images = jnp.asarray(RNG.normal(size=(3, 16, 16, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    variables = jax.tree.map(
        lambda s: jnp.asarray(RNG.normal(0, 0.2, s.shape), jnp.float32), shapes
    )
    return jax.jit(lambda images: module.apply(variables, images)), images


def test_the_patch_embedding_is_a_strided_convolution():
    kernel = jnp.asarray(RNG.normal(size=(8, 8, 3, 5)), jnp.float32)
    image = jnp.asarray(RNG.normal(size=(1, 16, 16, 3)), jnp.float32)
    convolved = jax.lax.conv_general_dilated(
        image, kernel, (8, 8), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = image.reshape(1, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    dense = DenseGeneral((8, 8, 3), (5,))
    variables = {"params": {"kernel": kernel, "bias": jnp.zeros(5)}}
    np.testing.assert_allclose(dense.apply(variables, patches), convolved, atol=1e-4)


def test_images_do_not_see_each_other(tower):
    run, images = tower
    together = run(images)
    assert together.shape == (3, 4, 32)
    changed = run(images.at[1].set(0.0))
    np.testing.assert_array_equal(changed[jnp.array([0, 2])], together[jnp.array([0, 2])])
    assert (changed[1] != together[1]).all()


def test_pixels_beyond_whole_patches_are_cut_off(tower):
    run, images = tower
    wide = jnp.pad(images, ((0, 0), (0, 3), (0, 5), (0, 0)), constant_values=9.0)
    np.testing.assert_allclose(run(wide), run(images), atol=1e-5)
