"""`mistjax train-sae` on the shipped policy: features, what stands in, cards, and steering."""

import json
import re

import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.rollouts.run import load_run

POLICY, TAP = str(SHIPPED / "board_pi0"), "action.resid@-1/action/tokens"
pytestmark = pytest.mark.slow


def test_features_stand_in_for_tokens_and_steer(tmp_path, capsys):
    run, out, steered = tmp_path / "run", tmp_path / "sae", tmp_path / "steered"
    collect = ["collect", POLICY, "--perturbation", "table_texture", "0.25", "--episodes"]
    assert main([*collect, "12", "--videos", "2", "--taps", TAP, "--out", str(run)]) == 0
    train = ["train-sae", str(run), "--policy", POLICY, "--tap", TAP, "--out", str(out)]
    train += ["--features", "128", "--k", "12", "--epochs", "8", "--cards", "2"]
    assert main([*train, "--episodes", "8"]) == 0
    said = capsys.readouterr().out
    left, principal = map(float, re.findall(r"(\d+\.\d)%", said)[:2])
    assert left < principal < 100
    rates = {
        name: sum(row["success"] for row in load_run(out / name).rows)
        for name in ("bare", "features", "mean")
    }
    assert rates["mean"] <= rates["features"] <= rates["bare"] + 1 and rates["mean"] < 2
    page = (out / "features.html").read_text()
    assert "What stands in for them" in page and "Steering along it" in page
    (feature, *_) = json.loads((out / "steering.json").read_text())["directions"]
    command = [*collect, "1", "--out", str(steered), "--steer", str(out), feature, "1.0"]
    assert main(command) == 0
