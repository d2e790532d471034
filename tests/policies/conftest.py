"""Tiny policies on the board robot, and a raw observation of it."""

import dataclasses
import io

import numpy as np
import pytest
import sentencepiece

from mistjax.models.config import TINY, TINY_FAST
from mistjax.models.fast_language import FastTokenizer
from mistjax.models.fast_tokenizer import ActionTokenizer
from mistjax.models.normalize import NormStats
from mistjax.models.tokenizers import PromptTokenizer
from mistjax.policies import BOARD, FastPolicy, PiPolicy

LETTERS = "abcdefghijklmnopqrstuvwxyzAST0123456789,:;|- "


def statistics(width, seed):
    rng = np.random.default_rng(seed)
    return NormStats.of(rng.normal(0.1, 0.4, (200, width)))


STATS = {"state": statistics(5, 0), "actions": statistics(4, 1)}


@pytest.fixture(scope="session")
def letters():
    """Content of a letter-by-letter prompt tokenizer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(LETTERS), LETTERS]),
        model_writer=model,
        model_type="char",
        vocab_size=len(LETTERS) + 4,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def pi_policy(letters, pi_variables):
    config = dataclasses.replace(TINY, max_token_len=12)
    tokenizer = PromptTokenizer(letters, 12)
    return PiPolicy(config, pi_variables(config), tokenizer, STATS, BOARD, name="tiny")


@pytest.fixture(scope="session")
def fast_policy(letters, fast_variables):
    config = dataclasses.replace(TINY_FAST, max_token_len=64, action_dim=4, max_decoding_steps=12)
    rng = np.random.default_rng(0)
    chunks = np.cumsum(rng.normal(0, 0.2, (100, config.action_horizon, 4)), axis=1)
    actions = ActionTokenizer.train(chunks, vocab_size=300)
    return FastPolicy(
        config=config,
        variables=fast_variables(config),
        tokenizer=FastTokenizer(PromptTokenizer(letters, 64), actions, config.vocab_size),
        norm_stats=STATS,
        preset=dataclasses.replace(BOARD, normalizer="quantile"),
        name="tiny_fast",
    )


@pytest.fixture(scope="session")
def raw():
    """Two raw observations."""
    rng = np.random.default_rng(2)

    def one(prompt):
        return {
            "observation/image": rng.integers(0, 256, (20, 20, 3), np.uint8),
            "observation/wrist_image": rng.integers(0, 256, (16, 16, 3), np.uint8),
            "observation/state": rng.normal(size=5),
            "prompt": prompt,
        }

    return [one("place it"), one("go")]
