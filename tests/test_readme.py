"""The README's examples run as they stand, and what it names exists."""

import re
from pathlib import Path

import pytest

from mistjax.cli import main

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


def test_every_command_it_shows_parses(capsys):
    shown = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
    lines = [line.split("#")[0].split() for line in shown.splitlines()]
    commands = [words[words.index("mistjax") + 1 :] for words in lines if "mistjax" in words]
    assert len(commands) > 5
    for name, *arguments in commands:
        with pytest.raises(SystemExit) as end:
            main([name, *arguments, "--help"])
        assert end.value.code == 0
        known = capsys.readouterr().out
        assert not [a for a in arguments if a.startswith("--") and a not in known], name
