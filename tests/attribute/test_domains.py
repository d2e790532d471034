"""What has no meaning as a mask, a region, a patch or an option is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute.batching import check_shares
from mistjax.attribute.inputs import Inputs, Regions
from mistjax.attribute.interventional import effects
from mistjax.attribute.readouts import ActionChange, ActionValue
from mistjax.attribute.registry import attribute
from mistjax.policies.protocol import Sample

KEY = jax.random.key(0)
READOUT = ActionValue(jnp.ones((1, 2)))


@pytest.mark.parametrize("wrong", [np.nan, -0.1, 1.1, np.inf])
def test_shares_are_numbers_from_0_to_1(wrong):
    check_shares("masks", {"a": jnp.array([0.0, 1.0])})
    with pytest.raises(ValueError, match="masks are shares"):
        check_shares("masks", {"a": jnp.array([0.0, wrong])})
    jax.jit(lambda x: check_shares("masks", x))(jnp.array(wrong))  # traced: nothing to see


def test_regions_that_do_not_fit_are_refused(linear, linear_obs):
    whole = Regions.full(Inputs.of(linear, linear_obs), (4, 4))
    fine = jax.tree.map(lambda leaf: leaf[None], whole)
    effects(linear, linear_obs, KEY, READOUT, fine, patch=(4, 4))
    for message, wrong in (
        ("regions are shares", jax.tree.map(lambda leaf: leaf * jnp.nan, fine)),
        ("a region has shape", jax.tree.map(lambda leaf: leaf[..., :1], fine)),
    ):
        with pytest.raises(ValueError, match=message):
            effects(linear, linear_obs, KEY, READOUT, wrong, patch=(4, 4))


@pytest.mark.parametrize("patch", [(0, 4), (4, -1), (400, 4)])
def test_patches_that_fit_no_picture_are_refused(linear, linear_obs, patch):
    with pytest.raises(ValueError, match="do not fit camera"):
        attribute("saliency", linear, linear_obs, KEY, READOUT, patch=patch)


def test_options_that_a_method_does_not_have_are_refused(linear, linear_obs):
    with pytest.raises(ValueError, match=r"saliency has no options \['steps'\]"):
        attribute("saliency", linear, linear_obs, KEY, READOUT, patch=(4, 4), steps=3)


def test_readouts_of_other_chunks_are_refused():
    sample = Sample(jnp.ones((2, 3, 4)), {}, {})
    with pytest.raises(ValueError, match="the reference has shape"):
        ActionChange(jnp.ones((1, 3, 4)))(sample)
    with pytest.raises(ValueError, match="weights have shape"):
        ActionValue(jnp.ones((1, 4)))(sample)
