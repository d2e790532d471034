"""Captions say what a chunk of actions does, in few words of a closed vocabulary."""

import numpy as np
import pytest

from mistjax.envs.board.captions import CAPTION_WORDS, caption


def chunk(motion, grip=1.0):
    return np.array([[*motion, grip]] * 8)


def then(first, second, at=4):
    return np.concatenate([first[:at], second[at:]])


STILL = (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("actions", "height", "words"),
    [
        (chunk((0.0, -0.3, 0.0)), 0.08, "move left slowly"),
        (chunk((0.0, 0.6, 0.0)), 0.08, "move right"),
        (chunk((-1.0, 0.0, 0.0)), 0.08, "move back quickly"),
        (chunk((0.0, 0.0, 0.6)), 0.08, "raise"),
        (chunk((0.5, 0.0, -0.4)), 0.08, "move forward lower"),
        (chunk(STILL), 0.08, "wait"),
        (chunk(STILL, -1.0), 0.08, "hold"),
        (chunk((0.0, -0.6, 0.0), -1.0), 0.08, "carry left"),
        (chunk((0.0, -0.3, 0.0), -1.0), 0.11, "carry left high slowly"),
        (chunk((0.0, -0.6, 0.0), -1.0), 0.055, "carry left low"),
        (then(chunk((0.0, 0.0, -0.5)), chunk(STILL, -1.0)), 0.03, "lower and close"),
        (then(chunk(STILL, -1.0), chunk((0.0, 0.0, 0.5))), 0.03, "open and raise"),
        (then(chunk(STILL), chunk(STILL, -1.0)), 0.03, "close"),
    ],
)
def test_a_motion_is_named(actions, height, words):
    assert caption(actions, height) == words


def test_any_chunk_gets_a_short_caption_of_known_words():
    rng = np.random.default_rng(0)
    for _ in range(500):
        actions = rng.uniform(-1, 1, (8, 4)) * rng.integers(0, 2, 4)
        words = caption(actions, float(rng.uniform(0.01, 0.13))).split()
        assert 1 <= len(words) <= 6
        assert set(words) <= set(CAPTION_WORDS)
