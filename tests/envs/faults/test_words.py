"""Instructions go wrong in the words that matter, and in no others."""

import itertools

import pytest

from mistjax.envs.board.instructions import COLOURS, HEIGHTS, SPEEDS, Task, instruct
from mistjax.envs.board.sensor_faults import choices
from mistjax.envs.faults.words import UNKNOWN_WORD, WORDS, rewrite
from mistjax.envs.libero.sensor_faults import choices as libero_choices

TASK = Task("black", 2, 4, "slowly", "high")
PROMPT = instruct(TASK)


def changed(kind, strength, seed=0):
    return rewrite(kind, PROMPT, choices(PROMPT), strength, seed)


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("seed", range(5))
def test_strength_is_the_number_of_words(kind, seed):
    words = PROMPT.split()
    assert changed(kind, 0.0, seed) == PROMPT
    for strength, count in ((0.33, 1), (0.66, 2), (1.0, 3)):
        other = changed(kind, strength, seed).split()
        if kind == "dropped_word":
            assert len(other) == len(words) - count
        else:
            assert sum(a != b for a, b in zip(words, other, strict=True)) == count
    assert changed(kind, 0.33, seed) == changed(kind, 0.33, seed)


@pytest.mark.parametrize("seed", range(5))
def test_a_swapped_word_asks_for_another_task(seed):
    fields = itertools.product(COLOURS, range(1, 6), range(1, 6), SPEEDS, HEIGHTS)
    others = {instruct(Task(*values)) for values in fields} - {PROMPT}
    assert changed("swapped_word", 0.33, seed) in others


def test_an_unknown_word_is_not_one_of_the_board():
    assert changed("unknown_word", 1.0).split().count(UNKNOWN_WORD) == 3


@pytest.mark.parametrize("kind", WORDS)
def test_sentences_of_libero_go_wrong_too(kind):
    prompt = "pick up the black bowl next to the plate and place it on the stove"
    assert rewrite(kind, prompt, libero_choices(prompt), 0.3, 1) != prompt
    assert set(libero_choices("close it")) == {0}
    assert rewrite("swapped_word", "close it", libero_choices("close it"), 1.0, 1) == "box it"
