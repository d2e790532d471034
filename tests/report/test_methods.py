"""`mistjax explain` on the shipped policy: a moment, an episode, a run, by every method."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from mistjax.attribute import ATTRIBUTIONS
from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.rollouts.replay import replay
from mistjax.rollouts.run import load_run, memory_run

POLICY, MIST = str(SHIPPED / "board_pi0"), str(SHIPPED / "board_mist")
METHODS = tuple(ATTRIBUTIONS)
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
    assert re.search(r"mean shares of \d\d moments: front \d+%", capsys.readouterr().out)
    assert "Share of each input" in page.read_text()


def test_a_run_is_a_row_for_each_episode(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert explain(run, page, "--detector", MIST, "--method", "token_norm") == 0
    assert "mean shares of 2 moments" in capsys.readouterr().out
    assert page.read_text().count('<th scope="row">0</th>') == 1


def test_what_writes_tokens_is_explained_and_restored_by_their_probability(tmp_path, capsys):
    fast, run, page = (
        str(SHIPPED / "board_fast"),
        str(tmp_path / "run"),
        str(tmp_path / "page.html"),
    )
    assert main(["collect", fast, "--out", run, "--episodes", "1", "--videos", "1"]) == 0
    common = [run, "--policy", fast, "--seed", "0", "--inference", "2", "--out", page]
    methods = ["--method", "integrated_gradients", "occlusion"]
    assert main(["explain", *common, "--of", "tokens", *methods]) == 0
    said = capsys.readouterr().out
    assert said.count("The log-probability of the tokens comes mostly from") == 2
    assert main(["patch", *common, "--restore", "stacks"]) == 0
    nats = re.search(
        r"tokens of the action are (\d\.\d\d) nats less likely", capsys.readouterr().out
    )
    assert nats and float(nats[1]) > 0.5
    found = re.search(r"all of vlm</th><td>(\d\.\d\d)", Path(page).read_text())
    assert found and float(found[1]) > 0.9


@pytest.mark.parametrize(
    # Not all of it: the first layer has read the corrupted tokens before its output is put back.
    ("what", "least"),
    [(("front",), 0.7), (("word", "--prompt", "move the stone"), 0.5)],
)
def test_a_corrupted_moment_is_restored_by_the_vlm(what, least, run, tmp_path, capsys):
    page = tmp_path / "page.html"
    command = ["patch", run, "--policy", POLICY, "--seed", "0", "--out", str(page)]
    assert main([*command, "--corrupt", *what, "--restore", "stacks", "heads"]) == 0
    said, html = capsys.readouterr().out, page.read_text()
    assert "the chunk moves by" in said
    found = re.search(r"all of vlm</th><td>(\d\.\d\d)", html)
    assert found and float(found[1]) > least
    assert "Heads of action" in html


def test_each_word_is_left_out_by_itself(run, tmp_path):
    page = tmp_path / "page.html"
    command = ["patch", run, "--policy", POLICY, "--seed", "0", "--inference", "2"]
    assert main([*command, "--restore", "stacks", "--out", str(page)]) == 0
    html = page.read_text()
    left_out = re.search(r"the word “(\S+)” is left out", html)
    listed = re.search(r'<ul class="words">(.*?)</ul>', html)
    assert left_out and listed
    each = re.findall(r"<li[^>]*>(.*?)<small>([+-]\d+\.\d\d)</small>", listed[1])
    assert len(each) > 4 and max(each, key=lambda pair: float(pair[1]))[0] == left_out[1]


def test_tokens_are_restored_one_by_one(run, tmp_path):
    page = tmp_path / "page.html"
    command = ["patch", run, "--policy", POLICY, "--seed", "0", "--out", str(page)]
    assert main([*command, "--corrupt", "patch", "--restore", "tokens"]) == 0
    html = page.read_text()
    assert "Tokens of vlm" in html
    assert re.search(r"vlm layer \d .*row \d column \d</th><td>0?\d\.\d\d", html)


def test_the_nuisance_mass_of_a_run_stands_beside_chance(run, tmp_path, capsys):
    out = tmp_path / "nmr.json"
    command = ["nmr", run, "--policy", POLICY, "--method", "gradient_x_input", "--of", "dx"]
    assert main([*command, "--moments", "2", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())[run]
    assert len(rows) == 2 and all(0 <= row["ratio"] <= 1 for row in rows)
    assert all(0.3 < row["chance"] < 0.95 for row in rows)
    assert re.search(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\] \(n = 2\)", capsys.readouterr().out)


def test_an_episode_that_plays_otherwise_is_refused(run):
    recorded = load_run(run)
    seed = recorded.seeds[0]
    inferences = [i for i, _, _ in replay(recorded, seed)]
    assert inferences == list(range(len(recorded.trace(seed).inference_step)))
    trace = recorded.trace(seed)
    moved = dataclasses.replace(trace, actions=-trace.actions)
    other = memory_run(dict(recorded.config), {seed: moved})
    with pytest.raises(ValueError, match="does not play again"):
        list(replay(other, seed))
