"""Interventions change what they replace; the nuisance mass ratio counts what lies outside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute import ActionValue, Baseline, attribute
from mistjax.attribute.inputs import Inputs, Regions
from mistjax.attribute.interventional import (
    effects,
    equal_area,
    nuisance_mass_ratio,
    nuisance_regions,
)

READOUT = ActionValue(jnp.array([[1.0, 0.0]]))


@pytest.fixture
def explained(linear, linear_obs, key):
    return attribute("integrated_gradients", linear, linear_obs, key, READOUT)


def test_replacing_an_object_has_the_effect_of_its_pixels(linear, linear_obs, key):
    """One region of any shape: here half of the front camera of each row, another half each."""
    inputs = Inputs.of(linear, linear_obs)
    half = jnp.zeros((2, 2, 2)).at[0, :, 0].set(1.0).at[1, :, 1].set(1.0)
    region = Regions.full(inputs, (4, 4), 0.0, rows=2)
    region = dataclasses.replace(region, images={**region.images, "front": half})
    regions = jax.tree.map(lambda leaf: leaf[None], region)
    after = effects(
        linear, linear_obs, key, READOUT, regions, patch=(4, 4), baseline=Baseline("grey")
    )
    parts = inputs.images["front"] * linear.pixels[None]
    removed = jnp.stack([parts[0, :, :4].sum(), parts[1, :, 4:].sum()])
    before = linear.sample(linear_obs, key).actions[:, 0, 0]
    np.testing.assert_allclose(after[0], before - removed, rtol=1e-4)


def test_nmr_at_k_counts_the_strongest_patches_only(explained):
    """Of four patches the strongest two, one of which is nuisance."""
    heat = jnp.array([[4.0, 3.0], [2.0, 1.0]])[None].repeat(2, 0)
    shown = dataclasses.replace(explained, images={"front": heat})
    nuisance = {"front": jnp.array([[0.0, 1.0], [1.0, 1.0]])[None].repeat(2, 0)}
    np.testing.assert_allclose(nuisance_mass_ratio(shown, nuisance), 0.6)
    np.testing.assert_allclose(nuisance_mass_ratio(shown, nuisance, top=0.5), 3 / 7)
    np.testing.assert_allclose(nuisance_mass_ratio(shown, nuisance, top=0.1), 0)
    with pytest.raises(ValueError, match="share of the patches"):
        nuisance_mass_ratio(shown, nuisance, top=0)


def test_a_patch_is_nuisance_by_its_share_of_irrelevant_pixels():
    segmentation = jnp.zeros((1, 4, 4), int).at[0, :2, :2].set(7).at[0, 0, 2].set(9)
    got = nuisance_regions(segmentation, jnp.array([7, 9]), (2, 2))
    np.testing.assert_array_equal(got[0], [[0.0, 0.75], [1.0, 1.0]])


def test_the_nuisance_mass_ratio_is_a_share(explained):
    shape = explained.images["front"].shape
    mass = np.abs(explained.images["front"])
    everything = nuisance_mass_ratio(explained, {"front": jnp.ones(shape)})
    np.testing.assert_allclose(everything, 1, rtol=1e-6)
    left = jnp.zeros(shape).at[:, :, 0].set(1.0)
    expected = mass[:, :, 0].sum(1) / mass.sum((1, 2))
    np.testing.assert_allclose(nuisance_mass_ratio(explained, {"front": left}), expected, rtol=1e-5)
    assert jnp.isnan(nuisance_mass_ratio(explained, {"wrist": left})).all()


def test_a_camera_without_attribution_is_refused(explained):
    with pytest.raises(ValueError, match=r"no attribution on cameras \['top'\]"):
        nuisance_mass_ratio(explained, {"top": jnp.ones((2, 2, 2))})


def test_a_true_map_is_told_from_random_patches_of_equal_area(linear, linear_obs, key):
    found = attribute("occlusion", linear, linear_obs, key, READOUT)
    changes = jnp.concatenate([jnp.abs(x).reshape(2, -1) for x in found.images.values()], axis=1)
    strongest, random = equal_area(
        linear, linear_obs, key, READOUT, found, share=1 / changes.shape[1], draws=40
    )
    np.testing.assert_allclose(strongest, changes.max(1), rtol=1e-4, atol=1e-5)
    assert random.shape == (40, 2) and (random <= strongest[None] + 1e-5).all()
    for row in range(2):  # each draw is one patch, and every patch is drawn
        each = np.abs(np.subtract.outer(np.asarray(random[:, row]), np.asarray(changes[row])))
        assert (each.min(1) < 1e-4).all() and len(set(each.argmin(1).tolist())) > 4
