"""The comparison of detectors on recorded runs: on a real policy, and on episodes whose answer is
known.
"""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.demo import SHIPPED
from mistjax.detect import DETECTORS
from mistjax.detect.bench import BenchConfig, run_bench
from mistjax.detect.inputs import declare
from mistjax.hooks import Tap
from mistjax.policies.load import load_policy
from mistjax.policies.resampled import Resampled
from mistjax.report.bench import write_page
from mistjax.rollouts.collect import collect
from mistjax.rollouts.run import load_run
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Trace

FAST = {"epochs": 5, "draws": 40}
CHEAP = ("safe_mlp", "mahalanobis", "stac_single", "trajectory_length", "max_token_prob", "ace")


def episode(seed, *, signal, rng):
    """Failures last longer, and from the third inference on their features move by `signal`."""
    success = seed % 3 != 0
    n = int(rng.integers(8, 11)) + 4 * (not success)
    x = rng.normal(size=(n, 1, 6)).astype(np.float32)
    if not success:
        x[2:] += signal
    chunks = rng.normal(size=(n, 4, 7)).astype(np.float32)
    return Trace(
        seed=seed,
        info={} if success else {"fault_onset": 2},
        env_id="known",
        task=json.dumps({"speed": ("slow", "fast")[seed % 2], "row": seed}),
        prompt="move",
        policy="known",
        policy_fingerprint="k",
        success=success,
        state=np.zeros((n, 1), np.float32),
        actions=chunks[:, 0],
        chunks=chunks,
        inference_step=np.arange(n, dtype=np.int32),
        timings_ms=np.ones(n, np.float32),
        features={"vlm.resid@-1/text/mean": x},
        aux={"sampled_actions": rng.normal(size=(n, 3, 4, 7)).astype(np.float32)},
    )


def write_run(path, seeds, *, signal=2.0, fingerprint="k", **changes):
    rng = np.random.default_rng(seeds[0])
    config = {"policy": "known", "policy_fingerprint": fingerprint, "execute_steps": 1}
    with RunWriter.open(path, config) as writer:
        for seed in seeds:
            trace = episode(seed, signal=signal, rng=rng)
            writer.add(dataclasses.replace(trace, **changes))
    return path


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("known") / "run", range(150))


@pytest.fixture(scope="module")
def compared(known, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    config = BenchConfig((known,), out, group="speed", detectors=CHEAP, **FAST)
    rows = run_bench(config, progress=False, write_page=write_page)
    return config, {row["name"]: row for row in rows}


def test_a_clear_signal_is_found_and_length_is_no_help_by_earliest_stop(compared):
    _, rows = compared
    assert rows["mahalanobis"]["roc_auc"]["value"] > 0.95
    length = rows["trajectory_length"]
    assert length["control"] and length["roc_auc"]["value"] == 0.5
    assert length["roc_auc_full"]["value"] == 1.0
    assert 0.2 < rows["stac_single"]["roc_auc"]["value"] < 0.8  # chunks are noise here


def test_every_estimate_lies_in_its_interval(compared):
    _, rows = compared
    for row in rows.values():
        for value in (v for v in row.values() if isinstance(v, dict) and "low" in v):
            assert value["low"] <= value["value"] + 1e-9 <= value["high"] + 2e-9


def test_alarms_come_with_the_promise(compared):
    _, rows = compared
    row = rows["mahalanobis"]
    assert row["detected"]["value"] > 0.8 and row["false_alarms"]["value"] < 0.4
    assert row["detection_time"]["value"] < 0.6
    assert 0 <= row["latency"]["value"] < 5  # the features move at the recorded onset


def test_what_was_not_recorded_stays_in_the_table_with_its_reason(compared):
    config, rows = compared
    assert rows["max_token_prob"]["status"] == "not applicable"
    assert "token_log_prob" in rows["max_token_prob"]["remark"]
    with (config.out / "bench.csv").open() as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert set(table) == set(CHEAP)
    assert float(table["mahalanobis"]["roc_auc"]) == rows["mahalanobis"]["roc_auc"]["value"]
    assert table["max_token_prob"]["roc_auc"] == ""
    page = (config.out / "bench.html").read_text()
    assert "token_log_prob" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_finished_rows_are_kept_and_another_comparison_is_refused(compared, monkeypatch):
    config, rows = compared
    path = config.out / "rows" / "safe_mlp.json"
    kept = json.loads(path.read_text()) | {"fit_s": 123.0}
    path.write_text(json.dumps(kept))
    again = {row["name"]: row for row in run_bench(config, progress=False)}
    assert again["safe_mlp"]["fit_s"] == 123.0
    assert again["mahalanobis"]["roc_auc"] == rows["mahalanobis"]["roc_auc"]
    with pytest.raises(ValueError, match="another comparison"):
        run_bench(dataclasses.replace(config, alpha=0.2), progress=False)


def test_too_few_successes_for_alpha_are_said(known, tmp_path):
    config = BenchConfig((known,), tmp_path, alpha=0.01, detectors=("mahalanobis",), **FAST)
    (row,) = run_bench(config, progress=False)
    assert "+inf" in row["remark"] and row["false_alarms"]["value"] == 0


def test_training_runs_are_apart_and_must_not_share_seeds(known, tmp_path):
    held = write_run(tmp_path / "held", range(200, 245))
    config = BenchConfig((held,), tmp_path / "out", (known,), detectors=("mahalanobis",), **FAST)
    run_bench(config, progress=False)
    split = json.loads((tmp_path / "out" / "bench.json").read_text())["split"]
    assert [split[part]["episodes"] for part in ("train", "calibration", "test")] == [150, 18, 27]
    other = write_run(tmp_path / "other", range(40), perturbation={"light": 0.5})
    with pytest.raises(ValueError, match="40 seeds"):
        run_bench(dataclasses.replace(config, runs=(other,)), progress=False)


def test_an_episode_given_twice_is_refused(known, tmp_path):
    with pytest.raises(ValueError, match=r"seed 0 of .* is given twice"):
        run_bench(BenchConfig((known, known), tmp_path / "out"), progress=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": float("nan")},
        {"alpha": 1.0},
        {"epochs": 0},
        {"seed": -1},
        {"draws": 0},
        {"pool": "median"},
        {"fractions": (0.5, 0.5, 0.0)},
    ],
    ids=str,
)
def test_a_number_that_cannot_be_is_refused_before_anything_is_read(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BenchConfig((Path("none"),), Path("out"), **wrong)


def test_runs_of_two_policies_are_refused(known, tmp_path):
    other = write_run(tmp_path / "other", range(200, 203), fingerprint="z")
    with pytest.raises(ValueError, match="2 policies"):
        run_bench(BenchConfig((known, other), tmp_path / "out"), progress=False)


def test_unknown_names_are_refused(known, tmp_path):
    for changes, message in (
        ({"detectors": ("magic",)}, "magic"),
        ({"features": ("x@1/a/mean",)}, "vlm.resid@-1/text/mean"),
        ({"group": "colour"}, "colour"),
    ):
        with pytest.raises(ValueError, match=message):
            run_bench(BenchConfig((known,), tmp_path / "out", **changes), progress=False)


def test_a_detector_that_refuses_does_not_stop_the_others(known, tmp_path):
    name = "vlm.resid@-1/text/mean"
    with RunWriter.open(tmp_path / "run", load_run(known).config) as writer:
        for trace in load_run(known).traces():
            features = {name: np.full_like(trace.features[name], np.nan)}
            writer.add(dataclasses.replace(trace, features=features))
    config = BenchConfig((tmp_path / "run",), tmp_path / "out", **FAST)
    config = dataclasses.replace(config, detectors=("mahalanobis", "trajectory_length"))
    rows = {row["name"]: row for row in run_bench(config, progress=False)}
    assert rows["trajectory_length"]["status"] == "scored"
    assert rows["mahalanobis"]["status"] == "refused" and "NaN" in rows["mahalanobis"]["remark"]
    assert not (config.out / "rows" / "mahalanobis.json").exists()


def test_tokens_steps_and_heads_are_pooled_into_one_vector():
    rng = np.random.default_rng(0)
    trace = episode(1, signal=0, rng=rng)
    n = len(trace.chunks)
    names = ("action.resid@all/action/tokens", "vlm.attn_heads@all/text/mean")
    tokens, heads = rng.normal(size=(n, 10, 2, 5, 3)), rng.normal(size=(n, 2, 4, 3))
    trace = dataclasses.replace(trace, features=dict(zip(names, (tokens, heads), strict=True)))
    hidden = declare(("hidden",), [trace], features=names).recorded(trace)
    wanted = [tokens.mean((1, 3)).reshape(n, -1), heads.reshape(n, -1)]
    np.testing.assert_allclose(hidden, np.concatenate(wanted, 1), rtol=1e-5)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """40 episodes of the shipped policy under a perturbation that makes many fail."""
    folder = tmp_path_factory.mktemp("board")
    policy = Resampled(load_policy(SHIPPED / "board_pi0"), 3)
    return collect(
        policy,
        folder / "run",
        episodes=40,
        first_seed=9_000_000,
        perturbation={"stone_reflectivity": 1.0},
        taps=[Tap("action.resid", (-1,), "action", "mean")],
        aux=["sampled_actions"],
        num_envs=12,
    )


@pytest.mark.slow
def test_the_executed_chunk_is_the_bare_policys(board):
    bare = load_policy(SHIPPED / "board_pi0")
    seed = board.seeds[0]
    again = collect(
        bare,
        board.path.parent / "bare",
        episodes=12,
        first_seed=seed,
        num_envs=12,
        perturbation={"stone_reflectivity": 1.0},
    )
    np.testing.assert_array_equal(board.trace(seed).chunks, again.trace(seed).chunks)
    drawn = board.trace(seed).aux["sampled_actions"]
    assert drawn.shape[1:] == (3, 8, 4) and (np.ptp(drawn, axis=1) > 0).all()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_detector_but_the_u_nets_runs_on_a_real_policy(board, tmp_path, capsys):
    """The U-Nets take minutes to compile and train; `test_zoo` fits them."""
    out, u_nets = tmp_path / "zoo", {"rnd", "logpzo"}
    names = sorted(set(DETECTORS) - u_nets)
    arguments = ["detect-bench", str(board.path), "--out", str(out), "--group", "speed"]
    arguments += ["--epochs", "5", "--features", "action.resid@-1/action/mean"]
    assert main([*arguments, "--detectors", *names]) == 0
    assert (out / "bench.html").exists()
    table = capsys.readouterr().out
    rows = {path.stem for path in (out / "rows").iterdir()}
    assert all(name in table for name in names)
    needs_more = {"sensitivity_gate", "action_rotation_var", "action_gripper_var"}
    needs_more |= {"velocity_disagreement", "guard", "guard_gate"}
    needs_more |= {name for name in DETECTORS if "_token_" in name}
    assert rows == set(names) - needs_more
