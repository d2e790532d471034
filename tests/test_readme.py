"""The README's examples run as they stand, and what it names exists."""

import re
from pathlib import Path

import pytest

from experiments.board_model import board_config
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, random_policy

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python run\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """An untrained policy where the examples look for the trained one."""
    train_word_tokenizer(["place the black stone at row column"], "12345", tmp_path / "words.model")
    tokenizer = PromptTokenizer.from_file(tmp_path / "words.model", 20)
    policy = random_policy(board_config(tokenizer.vocab_size), tokenizer, BOARD)
    policy.save(tmp_path / "checkpoints" / "board_pi0")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("source", EXAMPLES)
def test_the_examples_run_and_print_the_shapes_they_say(source, checkpoints, capsys):
    exec(compile(source, "README.md", "exec"), {})
    shape, difference = capsys.readouterr().out.split("\n", 1)
    assert shape == "(1, 1, 96)"
    assert "[[[" in difference


def test_there_is_an_example():
    assert EXAMPLES


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
