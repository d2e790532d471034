"""Calibration by strata, and the test of whether it still holds, on runs of the shipped policy."""

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.detect.artifact import FingerprintError, read_card
from mistjax.detect.calibration.drift import check_drift, drift, known_excess, watched_drift
from mistjax.detect.calibration.runs import calibrate_detector
from mistjax.detect.training import train_detector
from mistjax.policies.load import load_policy
from mistjax.recover.artifact import load_mist
from mistjax.recover.study import StudyConfig
from mistjax.report.study import run_study
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan

POLICY = str(SHIPPED / "board_pi0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("drift")


@pytest.fixture(scope="module")
def runs(plain_runs):
    return plain_runs


@pytest.fixture(scope="module")
def detector(folder, runs):
    train_detector([runs[0]], folder / "detector", name="cosine_knn", folds=0)
    calibrate_detector(folder / "detector", [runs[1]], alpha=0.2)
    return folder / "detector"


def test_the_calibration_notes_what_set_its_rank(detector, runs):
    values = np.array(known_excess(detector))
    successes = sum(bool(row["success"]) for row in runs[1].finished)
    assert len(values) == successes - max(int(0.3 * successes), 2)
    assert (values > 0).mean() <= 0.2


def test_the_same_episodes_again_are_no_drift(detector, runs):
    found = check_drift(detector, [runs[1]])
    assert not found.monitor.stale
    assert len(found.evidence) == found.false_alarms.n
    assert "No sign of drift" in found.describe()


@pytest.mark.slow
def test_another_table_makes_the_shipped_calibration_stale(folder, capsys):
    shipped, run = SHIPPED / "board_mist", str(folder / "table")
    taps = read_card(shipped)["reads"]["features"]
    options = ["--episodes", "48", "--first-seed", "7000000", "--taps", *taps]
    options += ["--perturbation", "table_texture", "0.2"]
    assert main(["collect", POLICY, "--out", run, *options]) == 0
    capsys.readouterr()
    assert main(["drift", run, "--detector", str(shipped)]) == 1
    assert "Calibration stale" in capsys.readouterr().out


def test_every_stratum_has_its_own_threshold(folder, runs, capsys):
    out = folder / "strata"
    train_detector([runs[0]], out, name="cosine_knn", folds=0)
    arguments = ["calibrate", str(runs[1].path), "--detector", str(out), "--alpha", "0.4"]
    assert main([*arguments, "--strata", "colour", "--band", "constant"]) == 0
    said = capsys.readouterr().out
    assert "black: At most" in said and "white: At most" in said
    policy = load_policy(POLICY)
    with pytest.raises(ValueError, match="asked for stratum None"):
        load_mist(out, policy, "monitor")
    limits = [
        float(load_mist(out, policy, "monitor", stratum=name).monitor.threshold.at(0))
        for name in ("black", "white")
    ]
    assert limits[0] != limits[1]
    found = check_drift(out, [runs[1]], stratum="black")
    assert len(known_excess(out, "black")) < found.false_alarms.n


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strata", "weather"], "has no 'weather'"),
        (["--alpha", "1.5"], "alpha must lie in"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(detector, runs, capsys, arguments, said):
    before = (detector / "detector.json").read_text()
    command = ["calibrate", str(runs[1].path), "--detector", str(detector)]
    assert main([*command, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert (detector / "detector.json").read_text() == before


def test_a_run_of_another_policy_is_refused(folder, detector, runs):
    other = collect(load_policy(SHIPPED / "board_fast"), folder / "other", episodes=1)
    with pytest.raises(FingerprintError):
        check_drift(detector, [other])
    with pytest.raises(ValueError, match="runs are of 0 policies"):
        check_drift(detector, [])


def test_a_study_says_whether_the_calibration_holds(folder):
    mist, out = SHIPPED / "board_mist", folder / "study"
    done = run_study(StudyConfig(POLICY, mist, out, ("monitor",), EpisodePlan(6)))
    found = watched_drift(mist, done["monitor"])
    assert found.false_alarms.n == sum(row["success"] for row in done["monitor"].finished)
    assert found.monitor.describe() in (out / "report.html").read_text()


def test_without_numbers_there_is_no_verdict():
    with pytest.raises(ValueError, match="run `mistjax calibrate` again"):
        drift([], [0.1])
    for delta in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="delta is"):
            drift([0.1], [0.1], delta)


def test_the_shipped_monitor_has_its_numbers():
    fields = read_card(SHIPPED / "board_mist")["threshold"]["fields"]
    assert len(known_excess(SHIPPED / "board_mist")) == fields["n_calibration"]
