"""Typos become the nearest known words, and nothing else changes. On the shipped policy."""

import logging

import jax
import numpy as np
import pytest

from mistjax.demo import POLICY
from mistjax.envs.board.env import BoardEnv
from mistjax.envs.faults.words import typos
from mistjax.policies.corrected import CorrectedPrompt, correct, words_of
from mistjax.policies.latched import LatchedPrompt
from mistjax.policies.load import load_policy
from mistjax.policies.wrapper import traceable

PROMPT = "Place the black stone at row 2, column 13."
WORDS = words_of([PROMPT, "place the white stone at row 3 column 1"])


@pytest.fixture(scope="module")
def policy():
    inside = load_policy(POLICY)
    prompts = [
        f"place the {c} stone at row {n} column {n}"
        for c in ("black", "white")
        for n in range(1, 6)
    ]
    return CorrectedPrompt(inside, words_of(prompts))


@pytest.fixture(scope="module")
def raw():
    return BoardEnv().reset(seed=30)[0]


def test_words_are_plain_and_sorted():
    assert (
        tuple(
            sorted(
                [
                    "place",
                    "the",
                    "black",
                    "white",
                    "stone",
                    "at",
                    "row",
                    "column",
                    "1",
                    "2",
                    "3",
                    "13",
                ]
            )
        )
        == WORDS
    )


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("Place the balck stone at row 2, column 13.", PROMPT),
        ("Place the black stone at row 22, column 13.", PROMPT),
        ("place the black stnoe  at rwo 2", "place the black stone  at row 2"),
        ("place the lback, stone", "place the black, stone"),
    ],
)
def test_a_typo_becomes_the_nearest_word(typo, meant):
    text, changes = correct(typo, WORDS)
    assert text == meant and changes


@pytest.mark.parametrize(
    "prompt",
    [
        PROMPT,
        "place the zzz stone at row 2",
        "place the black stone at row 31",  # as near to 3, to 1 and to 13
        "",
    ],
)
def test_what_is_known_far_or_equally_near_to_two_words_stays(prompt):
    assert correct(prompt, WORDS) == (prompt, ())


@pytest.mark.parametrize("seed", range(6))
def test_typos_of_the_battery_are_undone(policy, raw, seed):
    words = raw["prompt"].split()
    places = [words.index(w) for w in words if w in ("black", "white") or w.isdigit()]
    broken = typos(words, places, {}, np.random.default_rng(seed))
    assert broken != words and policy.corrected(" ".join(broken)) == raw["prompt"]


def test_the_actions_under_a_typo_are_those_of_the_prompt_that_was_meant(policy, raw, caplog):
    key = jax.random.key(0)
    meant = policy.policy.sample(policy.policy.prepare([raw]), key).actions
    same = policy.sample(policy.prepare([raw]), key).actions
    typo = raw["prompt"].replace("stone", "sotne")
    assert typo != raw["prompt"]
    with caplog.at_level(logging.WARNING):
        corrected = policy.sample(policy.prepare([{**raw, "prompt": typo}]), key).actions
    np.testing.assert_array_equal(same, meant)
    np.testing.assert_array_equal(corrected, meant)
    assert "'sotne' -> 'stone'" in caplog.text
    assert policy.spec.fingerprint != policy.policy.spec.fingerprint


def test_an_episode_begins_as_that_of_the_policy_inside(policy):
    """Which may have a state, or none."""
    assert policy.begin([1, 2]) == ()
    latched = LatchedPrompt.around(policy.policy, policy.policy)
    around, inside = (
        (LatchedPrompt.around(policy, policy.policy), latched),
        (CorrectedPrompt(latched, policy.words), latched),
    )
    for outer, inner in (around, inside):
        same = jax.tree.map(np.array_equal, outer.begin([1, 2]), inner.begin([1, 2]))
        assert all(jax.tree.leaves(same))


def test_a_compiled_rollout_reads_the_corrected_prompt(policy):
    there = traceable(policy)
    assert there is policy
    got, right = (there.encode_prompts([f"place the {w} stone"]) for w in ("balck", "black"))
    np.testing.assert_array_equal(got[0], right[0])
