"""The first instruction of an episode is kept; nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.policies import Policy
from mistjax.policies.latched import LatchedPrompt

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


def test_a_prompt_that_holds_the_state_is_left_alone(fast_policy):
    assert LatchedPrompt.around(fast_policy, fast_policy) is fast_policy
