"""The shipped policy in a paired study, and an alarm explained after the fact."""

import json

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.demo import MIST, POLICY, SHIPPED
from mistjax.policies.load import load_policy
from mistjax.recover.artifact import load_mist
from mistjax.recover.study import StudyConfig
from mistjax.report.study import run_study
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import load_run


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three episodes of every arm of the shipped board policy."""
    out = tmp_path_factory.mktemp("study")
    plan = EpisodePlan(3, 5_000_000, perturbation={"table_texture": 0.4}, videos=3)
    return out, run_study(StudyConfig(POLICY, MIST, out, plan=plan, title="test"))


@pytest.mark.slow
def test_watching_changes_no_action(study):
    _, runs = study
    for seed in runs["bare"].seeds:
        bare, watched = runs["bare"].trace(seed), runs["monitor"].trace(seed)
        assert np.array_equal(bare.actions, watched.actions)


@pytest.mark.slow
def test_arms_share_their_seeds_and_say_which_policy_they_are(study):
    _, runs = study
    assert len({run.seeds for run in runs.values()}) == 1
    assert len({run.config["policy_fingerprint"] for run in runs.values()}) == 4


@pytest.mark.slow
def test_until_the_first_alarm_every_arm_does_the_same(study):
    _, runs = study
    for seed in runs["mist"].seeds:
        bare, mist = runs["bare"].trace(seed), runs["mist"].trace(seed)
        first = int(np.argmax(mist.edited)) if mist.edited.any() else len(mist.chunks)
        shared = min(first, len(bare.chunks))
        assert np.array_equal(bare.chunks[:shared], mist.chunks[:shared])


@pytest.mark.slow
def test_the_page_is_one_self_contained_file(study):
    out, _ = study
    page = (out / "report.html").read_text()
    assert "data:video/mp4" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_command_line_explains_a_recorded_episode(study, tmp_path, capsys):
    folder = tmp_path / "run"
    policy = str(SHIPPED / "board_pi0")
    assert main(["collect", policy, "--out", str(folder), "--episodes", "1", "--videos", "1"]) == 0
    arguments = ["--policy", policy, "--detector", str(SHIPPED / "board_mist"), "--seed", "0"]
    page = tmp_path / "why.html"
    options = ["--method", "gradient_x_input", "--out", str(page)]
    assert main(["explain", str(folder), *arguments, *options]) == 0
    assert "failure score" in capsys.readouterr().out
    assert page.stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_line_trains_and_calibrates_a_detector(tmp_path, capsys):
    policy, runs = str(SHIPPED / "board_pi0"), []
    for name, seed in (("train", "0"), ("calibrate", "50")):
        runs.append(str(tmp_path / name))
        options = ["--episodes", "10", "--first-seed", seed]
        options += ["--perturbation", "stone_reflectivity", "1.0"]
        assert main(["collect", policy, "--out", runs[-1], *options]) == 0
    rows = load_run(runs[0]).rows
    assert {row["success"] for row in rows} == {True, False}
    detector = str(tmp_path / "detector")
    assert main(["train-detector", runs[0], "--out", detector, "--detector", "cosine_knn"]) == 0
    assert main(["calibrate", runs[1], "--detector", detector, "--alpha", "0.5"]) == 0
    assert "successful episodes raise an alarm" in capsys.readouterr().out
    card = json.loads((tmp_path / "detector" / "detector.json").read_text())
    assert card["training"]["runs"] == [runs[0]]


def test_an_arm_that_does_not_exist_is_refused(tmp_path):
    config = StudyConfig(SHIPPED / "board_pi0", None, tmp_path, arms=("best",))
    with pytest.raises(ValueError, match="choose some of bare, monitor, random, mist"):
        run_study(config)


def test_tasks_without_a_suite_are_refused():
    with pytest.raises(ValueError, match="no LIBERO suite is named"):
        EpisodePlan(tasks=(1,))


def test_an_arm_that_needs_a_monitor_says_so(tmp_path):
    config = StudyConfig(SHIPPED / "board_pi0", None, tmp_path, arms=("mist",))
    with pytest.raises(ValueError, match="needs a monitor"):
        run_study(config)


def test_a_monitor_refuses_another_policy():
    policy = load_policy(SHIPPED / "board_pi0")
    params = policy.variables["params"]
    other = policy.replace(
        variables={
            "params": {
                **params,
                "action_out_proj": {name: 2 * x for name, x in params["action_out_proj"].items()},
            }
        }
    )
    with pytest.raises(ValueError, match="watches the inputs of policy"):
        load_mist(SHIPPED / "board_mist", other)
