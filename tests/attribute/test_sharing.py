"""What runs share is computed once, and the numbers are those of runs that share nothing."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute import ActionValue
from mistjax.attribute.sharing import NOTHING, PICTURES, PREFIX, Runs
from mistjax.hooks.edits import Scale


@pytest.fixture(scope="module")
def readout(pi):
    return ActionValue(jnp.ones((pi.config.action_horizon, pi.config.action_dim)))


CHANGES = {
    PICTURES: lambda obs: dataclasses.replace(
        obs, tokenized_prompt_mask=obs.tokenized_prompt_mask.at[:, 2].set(False)
    ),
    PREFIX: lambda obs: dataclasses.replace(obs, state=obs.state + 1),
}
EDITS = {PICTURES: "vlm.mlp_out", PREFIX: "action.mlp_out"}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_what_is_shared_is_not_computed_again_and_changes_no_number(what, pi, pi_obs, key, readout):
    site = EDITS[what]
    depth = pi.spec.stacks[site.partition(".")[0]].depth
    edit = Scale(site=site, factor=jnp.full((depth, 1), 0.5))
    alone = Runs.sharing(NOTHING, pi, pi_obs, key, readout)
    expected = alone(CHANGES[what](pi_obs), (edit,))
    runs = Runs.sharing(what, pi, pi_obs, key, readout)
    changed = CHANGES[what](runs.obs)
    unread = {name: x * jnp.nan for name, x in changed.images.items()}  # were they read again
    got = runs(dataclasses.replace(changed, images=unread), (edit,))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert (jnp.abs(expected - readout(pi.sample(pi_obs, key))) > 1e-4).all()


def test_a_policy_without_tokens_runs_whole(linear, linear_obs, key):
    readout = ActionValue(jnp.array([[1.0, 0.0]]))
    runs = Runs.sharing(PREFIX, linear, linear_obs, key, readout)
    assert runs.prefix is None and runs.obs is linear_obs
    np.testing.assert_array_equal(runs(linear_obs), readout(linear.sample(linear_obs, key)))
