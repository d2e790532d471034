"""Every task has prompts of its own, in known words."""

import itertools

import pytest

from mistjax.envs.board.instructions import (
    COLOURS,
    HEIGHTS,
    INSTRUCTION_WORDS,
    PHRASINGS,
    SPEEDS,
    Task,
    instruct,
)

TASKS = [Task(*t) for t in itertools.product(COLOURS, (1, 4), (2, 5), SPEEDS, HEIGHTS)]


@pytest.mark.parametrize("phrasing", range(PHRASINGS))
def test_prompts_use_known_words_only(phrasing):
    words = {word for task in TASKS for word in instruct(task, phrasing).split()}
    assert words <= set(INSTRUCTION_WORDS)


def test_the_plain_prompt_reads_as_documented():
    assert instruct(Task("black", 2, 3)) == "place the black stone at row 2 column 3"


def test_different_tasks_have_different_prompts():
    asked = {}
    for task in TASKS:
        for phrasing in range(PHRASINGS):
            assert asked.setdefault(instruct(task, phrasing), task) == task


@pytest.mark.parametrize("wrong", [("red", 1, 1), ("black", 0, 1), ("black", 1, 6)])
def test_a_task_off_the_board_is_refused(wrong):
    with pytest.raises(ValueError, match="expected one of"):
        Task(*wrong)
