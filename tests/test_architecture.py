"""docs/architecture.md names floors and functions that are there."""

import re
from pathlib import Path

import pytest

import mistjax

ROOT = Path(mistjax.__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
STEPS = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("room", "name"), sorted(set(STEPS)))
def test_every_function_of_the_walks_is_in_its_room(room, name):
    sources = (path.read_text() for path in (ROOT / "mistjax" / room).rglob("*.py"))
    defined = re.compile(rf"^\s*(def|class) {name}\b", re.MULTILINE)
    assert any(defined.search(source) for source in sources)


def test_the_floors_are_those_of_the_imports():
    table = PAGE.split("## Floors")[1].split("##")[0]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, re.MULTILINE)
    named = [room for row in rows for room in re.findall(r"\w+", row)]
    floors = re.search(
        r"^FLOORS = \((.*?)\)", (ROOT / "tests" / "test_floors.py").read_text(), re.S | re.M
    )
    assert floors and set(named) == set(re.findall(r'"(\w+)"', floors[1])) and len(STEPS) > 25
    order = [room for room in re.findall(r'"(\w+)"', floors[1]) if room not in ("demo", "doctor")]
    assert [room for room in named[::-1] if room not in ("demo", "doctor")] == order
