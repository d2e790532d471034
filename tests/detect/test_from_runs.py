"""What training and calibration refuse, and what they say: on runs whose answer is known."""

import dataclasses
import json

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.detect.artifact import load_detector, read_card
from mistjax.detect.calibration.runs import calibrate_detector
from mistjax.detect.from_runs import episodes_from_runs, identity
from mistjax.detect.inputs import Input
from mistjax.detect.training import train_detector
from mistjax.rollouts.run import memory_run
from mistjax.rollouts.trace import Trace

HIDDEN = "vlm.resid@-1/text/mean"


def episode(seed, **changes):
    """Failures last longer, and their features move."""
    rng, success = np.random.default_rng(seed), seed % 3 != 0
    n = int(rng.integers(5, 8)) + 3 * (not success)
    chunks = rng.normal(size=(n, 4, 4)).astype(np.float32)
    trace = Trace(
        seed=seed,
        env_id="known",
        task=json.dumps({"speed": ("slow", "fast")[seed % 2]}),
        prompt="move",
        policy="known",
        policy_fingerprint="k",
        success=success,
        state=np.zeros((n, 1), np.float32),
        actions=chunks[:, 0],
        chunks=chunks,
        inference_step=np.arange(n, dtype=np.int32),
        timings_ms=np.ones(n, np.float32),
        features={HIDDEN: rng.normal(2.0 * (not success), 1, (n, 1, 6)).astype(np.float32)},
        aux={"sampled_actions": rng.normal(size=(n, 3, 4, 4)).astype(np.float32)},
    )
    return dataclasses.replace(trace, **changes)


def known_run(seeds, change=lambda trace: {}, **config):
    about = {"policy": "known", "policy_fingerprint": "k", "execute_steps": 4, "perturbation": {}}
    traces = {seed: episode(seed) for seed in seeds}
    traces = {s: dataclasses.replace(t, **change(t)) for s, t in traces.items()}
    return memory_run({**about, **config}, traces)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "detector"
    return folder, train_detector([known_run(range(30))], folder, name="mahalanobis")


def test_training_tells_what_held_out_episodes_say_and_what_it_read(trained):
    folder, made = trained
    assert (made.episodes, made.failures, made.judged) == (30, 10, 3)
    assert made.held_out["roc_auc"] > 0.8
    assert made.reads == Input(features=(HIDDEN,))
    said = made.describe()
    assert "Held out, not its own episodes (3 of 3 folds" in said and HIDDEN in said
    assert "no threshold yet, so it promises nothing" in said
    card = read_card(folder)
    assert card["training"]["held_out"]["roc_auc"] == made.held_out["roc_auc"]
    assert len(set(card["training"]["identities"])) == 30


def test_held_out_numbers_are_not_those_of_the_training_episodes(tmp_path):
    """On features that are noise, a fit separates its own episodes and no others."""

    def noise(trace):
        rng = np.random.default_rng(1000 + trace.seed)
        n = len(trace.chunks)
        return {"features": {HIDDEN: rng.normal(size=(n, 1, 40)).astype(np.float32)}}

    made = train_detector([known_run(range(60), noise)], tmp_path, name="linear_probe")
    assert made.held_out["roc_auc"] < 0.75


def test_folds_without_both_outcomes_are_not_judged(tmp_path):
    few = known_run([1, 2, 4, 5, 3])
    made = train_detector([few], tmp_path, name="mahalanobis_gate", folds=5)
    assert made.judged == 0 and not made.held_out
    assert "how it ranks is not known" in made.describe()
    with pytest.raises(ValueError, match="folds are 1"):
        train_detector([few], tmp_path, name="mahalanobis", folds=1)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("avg_token_entropy", "not recorded: aux token_log_prob, token_entropy"),
        ("stac", "all executed, do not overlap"),
        ("action_rotation_var", "reads 7 action dimensions"),
        ("sensitivity_gate", "mistjax collect --sensitivity"),
        ("velocity_disagreement", "mistjax collect --velocity"),
        ("guard", "mistjax collect --grounding"),
    ],
)
def test_a_detector_that_the_runs_cannot_feed_is_refused_in_a_sentence(tmp_path, name, why):
    with pytest.raises(ValueError, match=f"{name} cannot be made of these runs: .*{why}"):
        train_detector([known_run(range(6))], tmp_path, name=name)
    assert not (tmp_path / "detector.json").exists()


def test_one_chunk_an_inference_shows_no_disagreement(tmp_path):
    def alone(trace):
        return {"aux": {"sampled_actions": trace.aux["sampled_actions"][:, :1]}}

    with pytest.raises(ValueError, match=r"--samples"):
        train_detector([known_run(range(6), alone)], tmp_path, name="action_total_var")


def test_actions_in_the_robots_units_make_a_detector_of_recorded_episodes_only(tmp_path):
    run = known_run(range(12), lambda trace: {"aux": {}}, execute_steps=1)
    made = train_detector([run], tmp_path, name="stac_single", folds=0)
    assert "scores recorded episodes only" in made.describe()
    assert "robot's units" in made.reads.not_live


def test_training_on_nan_names_the_episode(tmp_path):
    def broken(trace):
        values = trace.features[HIDDEN].copy()
        values[-1] = np.nan if trace.seed == 4 else values[-1]
        return {"features": {HIDDEN: values}}

    with pytest.raises(ValueError, match="in 1 episodes, such as seed 4"):
        train_detector([known_run(range(9), broken)], tmp_path, name="cosine_knn")


def test_calibration_says_what_it_promises_and_what_it_assumed(trained):
    folder, _ = trained
    fresh = known_run(range(100, 140), perturbation={"light": 0.5})
    found = calibrate_detector(folder, [fresh], alpha=0.2, band="constant")
    said = found.describe()
    assert "At most 20.0% of successful episodes raise an alarm" in said
    assert "none of them trained the detector (checked" in said and '{"light": 0.5}' in said
    assert f"On these 40 episodes, {found.failures} of them failures: roc_auc" in said
    card = read_card(folder)
    assert len(card["calibration"]["identities"]) == 40 and card["training"]["episodes"] == 30


def test_a_threshold_of_infinity_is_no_promise_and_says_so(trained, recwarn):
    found = calibrate_detector(trained[0], [known_run(range(100, 106))], alpha=0.1)
    assert "Threshold is +inf" in found.describe() and "At most" not in found.describe()
    assert not recwarn.list


@pytest.mark.parametrize(
    ("seeds", "change"),
    [
        (range(29, 60), lambda trace: {}),
        (range(29, 60), lambda trace: {"features": {HIDDEN: trace.features[HIDDEN] + 1}}),
    ],
    ids=["the same", "recorded again"],
)
def test_an_episode_that_trained_the_detector_cannot_calibrate_it(trained, seeds, change):
    before = (trained[0] / "detector.json").read_text()
    with pytest.raises(ValueError, match=r"seed 29 of .* trained the detector"):
        calibrate_detector(trained[0], [known_run(seeds, change)])
    assert (trained[0] / "detector.json").read_text() == before


def test_an_episode_given_twice_is_refused(trained, tmp_path):
    first, second = known_run(range(100, 120)), known_run(range(119, 140))
    with pytest.raises(ValueError, match="1 episodes are given twice, such as seed 119"):
        calibrate_detector(trained[0], [first, second])
    with pytest.raises(ValueError, match="20 episodes are given twice"):
        train_detector([first, first], tmp_path, name="mahalanobis")


def test_an_older_artefact_is_checked_by_its_runs_and_says_that_it_is_not_by_episodes(
    trained, tmp_path
):
    found = load_detector(trained[0], "k")
    about = {"runs": [str(tmp_path / "old")], "episodes": 30, "failures": 10}
    from mistjax.detect.artifact import save_detector

    save_detector(tmp_path / "d", dataclasses.replace(found, training=about))
    said = calibrate_detector(tmp_path / "d", [known_run(range(100, 140))], alpha=0.2).describe()
    assert "an older release wrote it, so this is not checked" in said
    same = dataclasses.replace(known_run(range(100, 140)), path=tmp_path / "old")
    with pytest.raises(ValueError, match="old trained the detector"):
        calibrate_detector(tmp_path / "d", [same])


def test_a_success_without_a_finite_score_is_refused_by_name_and_a_failure_is_not(trained):
    def broken(seed):
        def change(trace):
            values = trace.features[HIDDEN].copy()
            values[1] = np.inf if trace.seed == seed else values[1]
            return {"features": {HIDDEN: values}}

        return change

    with pytest.raises(ValueError, match="1 successes are not finite, such as seed 101"):
        calibrate_detector(trained[0], [known_run(range(100, 140), broken(101))])
    found = calibrate_detector(trained[0], [known_run(range(100, 140), broken(102))], alpha=0.2)
    assert np.isfinite(found.metrics["roc_auc"])


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_an_alpha_that_is_no_share_is_refused_first(trained, alpha):
    with pytest.raises(ValueError, match="alpha must lie in"):
        calibrate_detector(trained[0], [], alpha=alpha)


def test_identity_is_the_episodes_and_not_the_recordings():
    one = identity(episode(3))
    again = episode(3, features={}, aux={}, success=None)
    assert identity(again) == one
    for change in (
        {"seed": 4},
        {"perturbation": {"light": 1.0}},
        {"policy_fingerprint": "z"},
        {"env_id": "other"},
        {"task": "other"},
    ):
        assert identity(episode(**{"seed": 3, **change})) != one
    imported = [episode(3, env_id="safe/x", actions=np.full((10, 4), v)) for v in (0.0, 1.0)]
    assert identity(imported[0]) != identity(imported[1])


def test_runs_without_an_episode_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no (finished )?episode"):
        episodes_from_runs([known_run([])], Input(features=(HIDDEN,)))
    with pytest.raises(ValueError, match=r"no (finished )?episode"):
        train_detector([known_run([])], tmp_path)


def test_the_commands_end_with_what_comes_next(plain_runs, tmp_path, capsys):
    """And refuse in one sentence, with exit code 2."""
    train, held, out = (str(p) for p in (*(r.path for r in plain_runs), tmp_path / "d"))
    fit = ["train-detector", train, "--out", out, "--detector", "cosine_knn", "--folds", "0"]
    assert main([*fit, "--steps", "last"]) == 0
    said = capsys.readouterr()
    assert "--steps last is now --pool 1.0" in said.err
    assert f"mistjax calibrate RUNS --detector {out}" in said.out
    assert main(["calibrate", held, "--detector", out, "--alpha", "0.4"]) == 0
    assert f"mistjax eval POLICY --mist {out}" in capsys.readouterr().out
    assert read_card(out)["reads"]["pool"] == "1.0"
    for arguments, why in (
        (["calibrate", train, "--detector", out], "trained the detector"),
        (["calibrate", held, held, "--detector", out], "given twice"),
        (["calibrate", held, "--detector", out, "--alpha", "nan"], "alpha"),
        (["calibrate", held, "--detector", out, "--seed", "-1"], "seed"),
        (["drift", held, "--detector", out, "--delta", "nan"], "delta"),
        ([*fit, "--pool", "median"], "unknown pooling"),
        ([*fit, "--epochs", "0", "--detector", "safe_mlp"], "epochs"),
        ([*fit, "--seed", "-3"], "seed"),
        ([*fit, "--detector", "avg_token_entropy"], "not recorded"),
        ([*fit, "--detector", "magic"], "no detector is called"),
        (["detect-bench", held, "--out", out + "b", "--alpha", "2"], "alpha"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert why in said.err and "Traceback" not in said.err, arguments
