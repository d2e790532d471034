"""The main path from the command line, on every shipped JAX policy: record, detect, explain, steer.

OpenVLA's is in `interop/openvla/test_command_line.py`.
"""

from pathlib import Path

import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED


def walk(policy: str, folder: Path, episodes: int, capsys, *played: str) -> None:
    """Every step on a policy, each from what the one before left on disk; `played` are further
    options of the recorded runs.
    """
    source, detector = str(SHIPPED / policy), str(folder / "detector")
    run, later = str(folder / "run"), str(folder / "later")

    def step(*arguments: str) -> str:
        assert main([*arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    more = ["--episodes", str(episodes), "--videos", "1", *played]
    step("collect", source, "--out", run, "--first-seed", "10", *more)
    step("collect", source, "--out", later, "--first-seed", "100", *more)
    step("train-detector", run, "--out", detector, "--detector", "linear_probe")
    assert "roc_auc" in step("calibrate", later, "--detector", detector, "--alpha", "0.5")
    step("drift", later, "--detector", detector)
    why = ["--policy", source, "--detector", detector, "--seed", "10"]
    for method in ("gradient_x_input", "occlusion"):
        page = folder / f"{method}.html"
        said = step("explain", run, *why, "--method", method, "--out", str(page))
        assert "failure score comes mostly from" in said
        assert page.stat().st_size > 10_000
    page = folder / "patching.html"
    patch = ["patch", run, "--policy", source, "--seed", "10", "--out", str(page)]
    assert "Most of the way back: all of" in step(*patch, "--restore", "stacks")
    assert "Each word left out" in page.read_text()
    assert "success@action.resid" in step("vectors", source, "--run", run, "--out", detector)
    steer = ["--steer", detector, "success@action.resid", "1.0"]
    step("collect", source, "--out", str(folder / "steered"), "--episodes", "1", *steer)
    step("remedy", detector, "--strengths", "1.0", "0.5", "0.0", "--cap", "0.1")
    study = ["--mist", detector, "--arms", "bare", "monitor", "mist", "--episodes", "2"]
    said = step("eval", source, *study, "--out", str(folder / "study"))
    assert said.count("(k/n)") == 1 and "Report: " in said


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "episodes"), [("board_pi0", 16), ("board_fast", 16)])
def test_the_main_path(policy, episodes, tmp_path, capsys):
    walk(policy, tmp_path, episodes, capsys)
