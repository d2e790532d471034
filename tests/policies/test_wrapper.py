"""A policy around another one answers for it."""

import jax.numpy as jnp
import pytest

from mistjax.hooks import Add
from mistjax.policies import Policy
from mistjax.policies.resampled import Resampled
from mistjax.policies.wrapper import language
from mistjax.steer import SteeredPolicy


@pytest.fixture(params=["pi_policy", "fast_policy"])
def bare(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["resampled", "steered"])
def wrapped(request, bare):
    if request.param == "resampled":
        return Resampled(bare, 2)
    return SteeredPolicy(bare, Add("vlm.resid", vector=jnp.ones((3, 32))))


def test_it_satisfies_the_protocol(wrapped, lacking):
    assert isinstance(wrapped, Policy) and not lacking(wrapped, Policy)


def test_what_it_says_is_what_the_inner_policy_says(wrapped, bare):
    for name in ("preset", "patch", "num_parameters", "chunk_width"):
        assert getattr(wrapped, name) == getattr(bare, name)
    drawn = {"sampled_actions"} if isinstance(wrapped, Resampled) else set()
    assert set(wrapped.reports) == {*bare.reports, *drawn}
    assert wrapped.spec.stacks == bare.spec.stacks


def test_its_words_are_those_of_the_innermost_policy(wrapped, bare):
    assert language(Resampled(wrapped, 2)) is bare


def test_a_policy_without_words_says_what_it_lacks(bare):
    class Silent(Policy):
        prepare = sample = finish = tokenizer = embed_prompt = None

    with pytest.raises(ValueError, match=r"Silent has no words .* lacks value_vectors"):
        language(Resampled(Silent(), 2))
