"""Prompts and tasks are two forms of the same thing."""

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
    parse,
)

TASKS = [Task(*t) for t in itertools.product(COLOURS, (1, 4), (2, 5), SPEEDS, HEIGHTS)]


@pytest.mark.parametrize("phrasing", range(PHRASINGS))
def test_a_prompt_parses_back_to_its_task_and_uses_known_words_only(phrasing):
    for task in TASKS:
        prompt = instruct(task, phrasing)
        assert parse(prompt) == task
        assert set(prompt.split()) <= set(INSTRUCTION_WORDS)


def test_the_plain_prompt_reads_as_documented():
    assert instruct(Task("black", 2, 3)) == "place the black stone at row 2 column 3"


def test_different_tasks_have_different_prompts():
    assert len({instruct(task) for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize(
    "prompt",
    [
        "place the green stone at row 2 column 3",
        "place the black stone at row 6 column 3",
        "slowly place the black stone at row 2 column 3 quickly",
        "place the _ stone at row 2 column 3",
        "",
    ],
)
def test_an_unreadable_prompt_is_refused_with_an_example(prompt):
    with pytest.raises(ValueError, match="expected for example"):
        parse(prompt)


@pytest.mark.parametrize("wrong", [("red", 1, 1), ("black", 0, 1), ("black", 1, 6)])
def test_a_task_off_the_board_is_refused(wrong):
    with pytest.raises(ValueError, match="expected one of"):
        Task(*wrong)
