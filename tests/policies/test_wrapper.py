"""A policy around another one answers for it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Add
from mistjax.policies import Policy
from mistjax.policies.resampled import Resampled
from mistjax.policies.wrapper import Reporting, language
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


@dataclasses.dataclass(frozen=True)
class Counted(Reporting):
    policy: Policy
    calls: list

    adds: ClassVar[str] = "counted"

    def report(self, first, obs, key, state, edits, prefix):
        self.calls.append(None)
        return first.actions[:, 0, 0]


def test_further_chunks_are_drawn_of_the_policy_that_acts(pi_policy, raw):
    obs, key, calls = pi_policy.prepare(raw), jax.random.key(3), []
    sample = Resampled(Counted(pi_policy, calls), 3).sample(obs, key)
    assert len(calls) == 1
    assert sample.aux["sampled_actions"].shape[:2] == (len(raw), 3)
    np.testing.assert_array_equal(sample.actions, pi_policy.sample(obs, key).actions)
    np.testing.assert_array_equal(sample.aux["counted"], sample.actions[:, 0, 0])
