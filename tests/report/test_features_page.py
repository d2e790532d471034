"""`mistjax train-sae` on the shipped policy: features, what stands in, cards, and steering."""

import re

import numpy as np
import pytest

from mistjax.attribute.questions import scored
from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.hooks import Tap
from mistjax.policies.load import load_policy
from mistjax.recover.artifact import load_mist, load_monitor
from mistjax.rollouts.collect import collect
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
    (feature,) = re.findall(rf"--steer {out} (feature_\d+) ", said)
    command = [*collect, "1", "--out", str(steered), "--steer", str(out), feature, "1.0"]
    assert main(command) == 0


def test_a_detector_reads_features_and_its_score_is_explained(tmp_path, capsys):
    """From recorded tokens to alarms of a monitored policy and to what raised its score."""
    runs = {"train": ("24", "0"), "other": ("24", "500")}
    folder = {name: str(tmp_path / name) for name in (*runs, "sae", "detector", "watched")}
    change = ["--perturbation", "table_texture", "0.35"]
    for name, (episodes, first) in runs.items():
        where = ["--episodes", episodes, "--first-seed", first, "--out", folder[name]]
        assert main(["collect", POLICY, *change, "--taps", TAP, *where]) == 0
    sizes = ["--features", "64", "--k", "8", "--epochs", "4", "--cards", "1"]
    train = ["train-sae", folder["train"], "--policy", POLICY, "--tap", TAP, "--out", folder["sae"]]
    assert main([*train, *sizes]) == 0
    fit = ["train-detector", folder["train"], "--sae", folder["sae"], "--out", folder["detector"]]
    assert main([*fit, "--detector", "stac"]) == 2
    assert "reads hidden states alone" in " ".join(capsys.readouterr().err.split())
    assert main([*fit, "--detector", "linear_probe"]) == 0
    assert "as 64 sparse features" in " ".join(capsys.readouterr().out.split())
    detector = ["--detector", folder["detector"]]
    assert main(["calibrate", folder["other"], *detector, "--alpha", "0.4"]) == 0
    policy = load_policy(POLICY)
    watched = load_mist(folder["detector"], policy, arm="monitor")
    taps = (Tap.parse(TAP),)
    collect(watched, folder["watched"], episodes=1, first_seed=900, videos=1, taps=taps)
    trace = load_run(folder["watched"]).trace(900)
    assert trace.score is not None and np.isfinite(trace.score).all()
    monitor = load_monitor(folder["detector"], policy)
    again = scored(monitor, trace).trace.score
    np.testing.assert_array_equal(trace.score, again)
    page = tmp_path / "why.html"
    explain = ["explain", folder["watched"], "--policy", POLICY, *detector, "--method", "saliency"]
    assert main([*explain, "--out", str(page)]) == 0
    assert "failure score" in capsys.readouterr().out
