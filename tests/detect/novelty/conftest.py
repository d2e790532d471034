"""A world of numbers: two cameras that see where the robot is, a robot that goes where it is told.

Tokens are a fixed linear function of the position, cells a picture that moves with it. A fault is
put in by hand.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect.novelty.fit import Recorded, calibrate_inputs, fit_inputs
from mistjax.detect.novelty.reading import Reading
from mistjax.models.config import TINY
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, random_policy

LOOKS, WORDS = 10, 6
_VIEW = np.random.default_rng(7).normal(size=(2, 3, 4 * 5)).astype(np.float32)


def world(episodes, seed=0, push=None):
    """Clean episodes; `push` = (look, how far) moves the robot beside its command."""
    rng = np.random.default_rng(seed)
    command = rng.uniform(-1, 1, (episodes, LOOKS, 4, 4)).astype(np.float32)
    command[..., 3] = np.where(rng.random((episodes, LOOKS, 1)) < 0.5, -1.0, 1.0)
    moves = 0.25 * command[..., :3].sum(2)
    if push is not None:
        moves[:, push[0] - 1, 0] += push[1]
    start = rng.normal(size=(episodes, 1, 3))
    place = start + np.concatenate([np.zeros_like(moves[:, :1]), np.cumsum(moves, 1)[:, :-1]], 1)
    opening = np.concatenate([np.ones((episodes, 1)), command[:, :-1, -1, 3]], 1)
    state = np.concatenate([place, np.ones((episodes, LOOKS, 1)), opening[..., None]], -1)
    state = state + 0.02 * rng.normal(size=state.shape)
    tokens = np.einsum("els,cst->elct", place, _VIEW) + 0.1 * rng.normal(
        size=(episodes, LOOKS, 2, 20)
    )
    wave = np.sin(np.linspace(0, 6, 192) + place[..., :1])[:, :, None]
    grid = 0.3 * wave + 0.02 * rng.normal(size=(episodes, LOOKS, 2, 192))
    detail = -2 + 0.05 * rng.normal(size=(episodes, LOOKS, 2, 8, 8))
    prompt = np.tile(np.array([2, 3, 4, 5, 0, 0], np.int32), (episodes, LOOKS, 1))
    readings = Reading(
        tokens=tokens.reshape(episodes, LOOKS, 2, 4, 5).astype(np.float32),
        grid=grid.reshape(episodes, LOOKS, 2, 8, 8, 3).astype(np.float32),
        detail=detail.astype(np.float32),
        state=state.astype(np.float32),
        prompt=prompt,
    )
    return Recorded(readings, command, np.ones((episodes, LOOKS), bool))


@pytest.fixture(scope="session")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    train_word_tokenizer(["place the stone"], ["slowly"], path)
    config = dataclasses.replace(TINY, max_token_len=WORDS)
    return random_policy(config, PromptTokenizer.from_file(path, WORDS), BOARD)


@pytest.fixture(scope="session")
def fitted(policy):
    """A monitor without a threshold."""
    options = {"components": 16, "hidden": (48,), "steps": 400, "noise": 0.05}
    return fit_inputs(policy, world(80), **options)


@pytest.fixture(scope="session")
def monitor(fitted):
    return calibrate_inputs(fitted, world(250, seed=1), 0.1, 0.9)


def changed(recorded, **fields):
    """Recorded episodes with some fields of the readings replaced, from look 5 on."""
    new = {}
    for name, change in fields.items():
        value = np.array(getattr(recorded.readings, name))
        value[:, 5:] = change(value[:, 5:], value)
        new[name] = value
    return recorded.replace(readings=recorded.readings.replace(**new))


def first_rows(tree, n):
    return jax.tree.map(lambda x: jnp.asarray(x)[:n], tree)
