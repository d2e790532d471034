"""`mistjax words` on shipped policies: what is read off the weights, and what is measured."""

import re

import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "run"
    command = ["collect", str(SHIPPED / "board_pi0"), "--out", str(folder)]
    assert main([*command, "--episodes", "2", "--videos", "2"]) == 0
    return folder


def test_directions_of_the_expert_are_measured_beside_random_neurons(run, tmp_path, capsys):
    page = tmp_path / "words.html"
    command = ["words", str(SHIPPED / "board_pi0"), "--stack", "action", "--run", str(run)]
    command += ["--clusters", "2", "--concepts", "up", "+dz", "down", "[-]dz", "--scenes", "8"]
    assert main([*command, "--controls", "3", "--statistics", "dz", "--out", str(page)]) == 0
    said, html = capsys.readouterr().out, page.read_text()
    assert re.search(r"On 8 scenes \d of \d effects are beyond random neurons", said)
    up = re.search(r'<th scope="row">up</th><td>\d+</td><td>add</td>(.*?)</tr>', html)
    assert up
    low, high = re.findall(r"<td>([+-]\d\.\d+)", up[1])[:2]
    assert float(high) > float(low)
    assert html.count("change of dz") >= 4


def test_action_tokens_are_told_from_words(tmp_path, capsys):
    page = tmp_path / "words.html"
    fast = ["words", str(SHIPPED / "board_fast"), "--out", str(page), "--clusters", "3"]
    assert main(fast) == 0
    assert "; 0% write an action most" in capsys.readouterr().out
    assert main([*fast, "--stack", "action"]) == 0
    share = re.search(r"; (\d+)% write an action most", capsys.readouterr().out)
    assert share and 0 < int(share[1]) <= 100
    assert "action" in page.read_text()
