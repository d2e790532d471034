"""The README's example runs as it stands, and what it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
(EXAMPLE,) = re.findall(r"^```python run\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_example_makes_a_policy_that_is_watched(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    names = {}
    exec(compile(EXAMPLE, "README.md", "exec"), names)
    promise, first_alarms = capsys.readouterr().out.strip().rsplit("\n", 1)
    assert "At most 10.0% of successful episodes raise an alarm" in promise
    assert len(names["watched"].finished) == 8 == first_alarms.count(",") + 1
    assert all(row["monitored"] for row in names["watched"].rows)


def test_the_example_is_ten_lines():
    lines = [line for line in EXAMPLE.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 10


def test_every_file_that_it_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).exists()]
