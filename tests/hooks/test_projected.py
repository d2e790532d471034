"""What leaves the vision tower is read and changed as anything inside of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Patch, Tap
from mistjax.models.config import TINY, TINY_FAST
from mistjax.models.siglip import project
from mistjax.policies import load_policy

SITE = Tap("vision.projected", None, "image")
RESID = Tap("vision.resid", (-1,), "image")


@pytest.fixture(scope="module")
def policy():
    return load_policy("checkpoints/board_pi0")


@pytest.fixture(scope="module")
def obs(policy, observation):
    return observation(policy.config, batch=3)


KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.fixture(scope="module")
def bare(policy, obs):
    return policy.sample(obs, KEYS)


def test_an_observation_that_brings_its_tokens_acts_the_same_bit_for_bit(policy, obs, bare):
    seen, taps = policy.embed_images(obs, taps=(SITE, RESID))
    again = policy.sample(seen, KEYS, taps=(SITE,))
    assert np.array_equal(bare.actions, again.actions)
    assert np.array_equal(taps[str(SITE)][0], seen.image_embedding)
    assert np.array_equal(again.taps[str(SITE)], taps[str(SITE)])
    tower = policy.variables["params"]["PaliGemma"]["img"]
    np.testing.assert_allclose(project(tower, taps[str(RESID)]), taps[str(SITE)], atol=1e-4)


def test_an_edit_there_is_another_token_and_leaves_the_other_rows_alone(policy, obs, bare):
    seen, _ = policy.embed_images(obs)
    value = jax.random.normal(jax.random.key(1), seen.image_embedding.shape)
    start, stop = policy.spec.stacks["vision"].layout.select("left_wrist_0_rgb")
    strength = jnp.array([0.0, 1.0, 0.0])
    edit = Patch(SITE.site, "left_wrist_0_rgb", strength, value=value[None])
    edited = policy.sample(obs, KEYS, edits=(edit,)).actions
    replaced = seen.image_embedding.at[1, start:stop].set(value[1, start:stop])
    by_hand = policy.sample(dataclasses.replace(seen, image_embedding=replaced), KEYS).actions
    np.testing.assert_allclose(edited, by_hand, atol=1e-4)
    assert [np.array_equal(a, b) for a, b in zip(edited, bare.actions, strict=True)] == [
        True,
        False,
        True,
    ]


def test_a_masked_state_is_not_read(policy, obs, bare):
    masked = dataclasses.replace(obs, state_mask=jnp.array([True, False, True]))
    other = dataclasses.replace(masked, state=jnp.asarray(obs.state).at[1].add(3.0))
    first, second = policy.sample(masked, KEYS).actions, policy.sample(other, KEYS).actions
    assert np.array_equal(first, second)
    assert np.array_equal(first[0], bare.actions[0])
    assert not np.array_equal(first[1], bare.actions[1])


@pytest.mark.parametrize("config", [TINY_FAST, dataclasses.replace(TINY, pi05=True)])
def test_a_state_in_the_prompt_has_no_mask_of_its_own(config, observation):
    from mistjax.models.observation import check_observation

    obs = observation(config)
    with pytest.raises(ValueError, match="in its prompt"):
        check_observation(config, dataclasses.replace(obs, state_mask=jnp.ones(2, bool)))


def test_sizes_are_checked(policy, obs):
    short = dataclasses.replace(obs, image_embedding=jnp.zeros((3, 31, 96)))
    with pytest.raises(ValueError, match="image_embedding"):
        policy.sample(short, KEYS)
    with pytest.raises(ValueError, match="do not exist"):
        policy.embed_images(obs, taps=(Tap(SITE.site, (1,), "image"),))


@pytest.mark.parametrize("site", ["vlm.projected", "action.projected"])
def test_it_is_a_site_of_the_vision_tower_alone(site):
    with pytest.raises(ValueError, match="is not a site"):
        Tap(site)
