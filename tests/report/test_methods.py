"""`mistjax explain` on the shipped policy: a moment, an episode, a run, by every method."""

import re

import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED

POLICY, MIST = str(SHIPPED / "board_pi0"), str(SHIPPED / "board_mist")
METHODS = ("integrated_gradients", "occlusion", "attention_mass", "token_norm", "cache_ablation")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain") / "run"
    command = ["collect", POLICY, "--out", str(folder), "--episodes", "2", "--videos", "2"]
    assert main([*command, "--perturbation", "stone_reflectivity", "1.0"]) == 0
    return str(folder)


def explain(run, page, *options):
    return main(["explain", run, "--policy", POLICY, "--out", str(page), *options])


def test_methods_stand_side_by_side_with_what_they_cost(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert explain(run, page, "--detector", MIST, "--seed", "0", "--method", *METHODS) == 0
    said, html = capsys.readouterr().out, page.read_text()
    for name in METHODS:
        assert f"{name}: " in said
        row = re.search(rf'<th scope="row">{name.replace("_", " ")}</th>(.*?)</tr>', html)
        assert row and re.search(r"\d+\.\d <span class=\"whole\">\(\d+\.\d x\)", row[1])
    error = re.search(r"integrated gradients</th><td>.*?</td><td>(\d+\.\d)%", html)
    assert error and float(error[1]) < 20
    assert html.count('class="words"') == 2 * len(METHODS)


@pytest.mark.parametrize(
    "of", [("dz",), ("action",), ("prompt", "--prompt", "place the black stone at row 1 column 1")]
)
def test_actions_are_explained_without_a_detector(of, run, tmp_path, capsys):
    page = tmp_path / "page.html"
    options = ["--seed", "1", "--inference", "2", "--method", "cache_ablation", "occlusion"]
    assert explain(run, page, "--of", *of, *options) == 0
    assert "comes mostly from" in capsys.readouterr().out


def test_a_whole_episode_is_a_line_for_each_input(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    options = ["--seed", "0", "--inference", "all", "--method", "attention_mass", "--of", "dx"]
    assert explain(run, page, *options) == 0
    assert re.search(r"mean shares of \d\d moments: base_0_rgb \d+%", capsys.readouterr().out)
    assert "Share of each input" in page.read_text()


def test_a_run_is_a_row_for_each_episode(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert explain(run, page, "--detector", MIST, "--method", "token_norm") == 0
    assert "mean shares of 2 moments" in capsys.readouterr().out
    assert page.read_text().count('<th scope="row">0</th>') == 1
