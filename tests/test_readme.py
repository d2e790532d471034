"""The README's examples run as they stand, and what it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python run\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("source", EXAMPLES)
def test_the_examples_run_and_print_the_shapes_they_say(source, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
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
