"""Tiny random pi0 and pi0.5 policies, and observations of them."""

import dataclasses

import numpy as np
import pytest

from mistjax.models.config import TINY
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, random_policy

PROMPT = "place the black stone at row 2 column 3"


@pytest.fixture(scope="session")
def make_policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    train_word_tokenizer([PROMPT], ["slowly"], path)

    def make(pi05=False):
        config = dataclasses.replace(TINY, max_token_len=14, action_horizon=8, pi05=pi05)
        return random_policy(config, PromptTokenizer.from_file(path, 14), BOARD)

    return make


@pytest.fixture(scope="session")
def policy(make_policy):
    return make_policy()


@pytest.fixture(scope="session")
def raw():
    """`raw(n)`: raw observations."""
    rng = np.random.default_rng(0)

    def one():
        return {
            "observation/image": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            "observation/wrist_image": rng.integers(0, 256, (16, 16, 3), dtype=np.uint8),
            "observation/state": rng.normal(size=5).astype(np.float32),
            "prompt": PROMPT,
        }

    return lambda n: [one() for _ in range(n)]
