"""The tiny pi0 of LIBERO, taught more tasks than it knows."""

import jax
import numpy as np
import pytest

from experiments.train.libero_model import (
    libero_config,
    shifted,
    taught_before,
    word_tokenizer,
)
from mistjax.demo import SHIPPED
from mistjax.models import pi0
from mistjax.policies import LIBERO_TINY, PiPolicy
from mistjax.serve.lane import blank

KNOWN = "pick up the milk and place it in the basket"
NEW = "pick up the black bowl on the stove and place it on the plate"
KEY = jax.random.key(3)


def act(policy, prompt):
    obs = policy.prepare([{**blank(policy.preset), "prompt": prompt}])
    return np.asarray(policy.sample(obs, KEY).actions)


@pytest.mark.slow
def test_a_policy_keeps_what_it_was_taught_and_gets_new_words():
    start = PiPolicy.load(SHIPPED / "libero_pi0", LIBERO_TINY)
    tokenizer = word_tokenizer([KNOWN, NEW])
    config = libero_config(tokenizer.vocab_size)
    fresh = pi0.init(config, jax.random.key(0))["params"]
    params = {"params": taught_before(start, tokenizer, config, fresh)}
    policy = PiPolicy(config, params, tokenizer, start.norm_stats, LIBERO_TINY, "more")
    np.testing.assert_allclose(act(policy, KNOWN), act(start, KNOWN), atol=1e-5)
    rows = policy.variables["params"]["PaliGemma"]["llm"]["embedder"]["input_embedding"]
    word = tokenizer.piece_to_id("\u2581bowl")
    np.testing.assert_array_equal(
        rows[word], fresh["PaliGemma"]["llm"]["embedder"]["input_embedding"][word]
    )
    assert not np.allclose(act(policy, NEW), act(start, NEW), atol=1e-3)
    with pytest.raises(ValueError, match="libero_pi0 has another model"):
        taught_before(start, tokenizer, libero_config(tokenizer.vocab_size, patch=16), fresh)


def test_a_shifted_picture_repeats_its_edge():
    pictures = np.arange(2 * 6 * 5).reshape(2, 6, 5, 1).astype(np.float32)
    moved = shifted(pictures, np.random.default_rng(0), 2)
    assert not np.array_equal(moved[0] - pictures[0], moved[1] - pictures[1])
    for before, after in zip(pictures, moved, strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), mode="edge")
        windows = [padded[y : y + 6, x : x + 5] for y in range(5) for x in range(5)]
        assert any(np.array_equal(after, window) for window in windows)
    np.testing.assert_array_equal(shifted(pictures, np.random.default_rng(0), 0), pictures)
