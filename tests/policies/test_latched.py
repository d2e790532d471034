"""The first instruction of an episode is kept; nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.policies import Policy
from mistjax.policies.latched import LatchedPrompt
from mistjax.policies.wrapper import erase_state, write_state

KEY = jax.random.key(0)


@pytest.fixture
def observed(pi_policy, raw):
    """The same moment under two instructions."""
    return [pi_policy.prepare([{**raw[0], "prompt": words}]) for words in ("place", "remove")]


def test_a_changed_instruction_is_not_followed(pi_policy, observed):
    first, changed = observed
    kept = LatchedPrompt.around(pi_policy, pi_policy)
    begun = kept.sample(first, KEY)
    later = kept.sample(changed, KEY, state=begun.state)
    bare = pi_policy.sample(first, KEY)
    assert np.array_equal(begun.actions, bare.actions)
    assert np.array_equal(later.actions, bare.actions)
    assert not np.array_equal(pi_policy.sample(changed, KEY).actions, bare.actions)
    assert np.array_equal(kept.sample(changed, KEY).actions, pi_policy.sample(changed, KEY).actions)


def test_each_episode_of_a_batch_keeps_its_own(pi_policy, observed):
    kept = LatchedPrompt.around(pi_policy, pi_policy)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), *observed)
    begun = kept.sample(both, KEY)
    fresh = dataclasses.replace(begun.state, begun=jnp.array([True, False]))
    swapped = jax.tree.map(lambda x: x[::-1], both)
    tokens = kept.sample(swapped, KEY, state=fresh).state.tokens
    first = both.tokenized_prompt[0]
    assert np.array_equal(tokens, [first, first])


def test_it_answers_for_the_policy_inside(pi_policy, lacking):
    kept = LatchedPrompt.around(pi_policy, pi_policy)
    assert isinstance(kept, Policy) and not lacking(kept, Policy)
    assert kept.spec == pi_policy.spec


def test_beside_words_that_are_kept_the_state_is_the_present_one(fast_policy, raw):
    def at(words, state):
        return fast_policy.prepare([{**raw[0], "prompt": words, "observation/state": state}])

    here, there = np.full(5, -0.4), np.full(5, 0.3)
    kept = LatchedPrompt.around(fast_policy, fast_policy)
    begun = kept.sample(at("place", here), KEY)
    later = kept.sample(at("remove it", there), KEY, state=begun.state)
    wanted = fast_policy.sample(at("place", there), KEY)
    assert np.array_equal(later.aux["tokens"], wanted.aux["tokens"])
    assert np.array_equal(later.aux["token_log_prob"], wanted.aux["token_log_prob"])
    assert not np.array_equal(
        wanted.aux["token_log_prob"],
        fast_policy.sample(at("remove it", there), KEY).aux["token_log_prob"],
    )


def test_words_and_state_of_a_prompt_come_apart_and_together_again(fast_policy, raw):
    obs = fast_policy.prepare(raw)
    apart = erase_state(fast_policy, obs)
    words = fast_policy.prepare([{**r, "observation/state": np.zeros(5)} for r in raw])
    assert np.array_equal(apart.tokenized_prompt, erase_state(fast_policy, words).tokenized_prompt)
    whole = write_state(fast_policy, apart)
    assert np.array_equal(whole.tokenized_prompt, obs.tokenized_prompt)
    assert np.array_equal(whole.tokenized_prompt_mask, obs.tokenized_prompt_mask)
    assert apart.tokenized_prompt_mask.sum() < obs.tokenized_prompt_mask.sum()
