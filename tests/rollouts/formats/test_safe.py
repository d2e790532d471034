"""SAFE's rollout files: round trips, and pickles that are refused."""

import dataclasses
import os
import pickle
import pickletools
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest

from mistjax.cli import main
from mistjax.detect.bench import BenchConfig
from mistjax.detect.bench.episodes import read_runs
from mistjax.rollouts.formats.safe.__main__ import export_rollouts, import_rollouts
from mistjax.rollouts.formats.safe.pickles import PickleRefused, load
from mistjax.rollouts.formats.safe.reading import _natural
from mistjax.rollouts.run import load_run
from mistjax.rollouts.store import RunWriter
from mistjax.rollouts.trace import Trace

STEPS = "action.resid@-1/action/tokens"
TOKENS = "action.resid@-1/action/mean"


def episode(seed, n=5):
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(n, 7)).astype(np.float32)
    return Trace(
        seed=seed,
        env_id="libero_10",
        task=f"task {seed % 3}",
        prompt=f"do task {seed % 3}",
        policy="p",
        policy_fingerprint="f",
        success=seed % 2 == 0,
        state=np.zeros((n, 2), np.float32),
        actions=actions,
        chunks=actions[:, None],
        inference_step=np.arange(n, dtype=np.int32),
        timings_ms=np.ones(n, np.float32),
        features={
            STEPS: rng.normal(size=(n, 4, 1, 3, 6)).astype(np.float32),
            TOKENS: rng.normal(size=(n, 7, 1, 6)).astype(np.float32),
        },
        aux={
            "token_log_prob": np.log(rng.uniform(0.1, 1, (n, 7)).astype(np.float32)),
            "token_entropy": rng.uniform(0, 2, (n, 7)).astype(np.float32),
        },
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "run"
    config = {"policy": "p", "policy_fingerprint": "f", "execute_steps": 1, "taps": []}
    with RunWriter.open(path, config) as writer:
        for seed in range(10, 16):
            writer.add(episode(seed, n=5 + seed % 3))
    return path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for layout, feature in (("pi0", STEPS), ("openvla", TOKENS)):
        export_rollouts(str(run), str(folder / layout), feature, layout)
    return {layout: folder / layout for layout in ("pi0", "openvla")}


@pytest.mark.parametrize(
    "layout, theirs, ours", [("pi0", "pre_velocity", STEPS), ("openvla", "hidden_states", TOKENS)]
)
def test_what_is_exported_comes_back(layout, theirs, ours, run, exported, tmp_path):
    import_rollouts(str(exported[layout]), str(tmp_path / "back"), None, [])
    back = load_run(tmp_path / "back")
    before = {trace.info.get("episode_idx", trace.seed): trace for trace in load_run(run).traces()}
    assert len(back.rows) == len(before)
    for after in back.traces():
        trace = before[after.info["episode_idx"]]
        np.testing.assert_array_equal(after.features[theirs], trace.features[ours].squeeze(2))
        np.testing.assert_array_equal(after.chunks, trace.chunks)
        np.testing.assert_array_equal(after.actions, trace.actions)
        assert (after.success, after.prompt) == (trace.success, trace.prompt)
        assert np.isnan(after.timings_ms).all() and after.row()["median_ms"] is None
        if layout == "openvla":
            for name, values in trace.aux.items():
                np.testing.assert_allclose(after.aux[name], values, atol=1e-6)
    again = tmp_path / "again"
    export_rollouts(str(back.path), str(again), theirs, layout)
    for one in _natural(path for path in exported[layout].rglob("*") if path.is_file()):
        other = (again / one.relative_to(exported[layout])).read_bytes()
        if one.suffix == ".csv":
            numbers = [
                np.genfromtxt(text.decode().splitlines(), delimiter=",", skip_header=1)
                for text in (one.read_bytes(), other)
            ]
            np.testing.assert_allclose(*numbers, atol=1e-6)
        elif "env_records" not in one.parts or layout == "openvla":
            assert other == one.read_bytes(), one


def test_the_command_line_exports_and_imports_in_processes_of_their_own(run, tmp_path, capsys):
    folder, back = str(tmp_path / "safe"), str(tmp_path / "run")
    assert main(["export-safe", str(run), "--out", folder, "--feature", STEPS]) == 0
    assert main(["import-safe", folder, "--out", back, "--pool", "mean"]) == 0
    shown = capsys.readouterr()
    assert "6 episodes" in shown.out and "import only files that you trust" in shown.err
    trace = next(load_run(back).traces())
    assert trace.features["pre_velocity"].shape[1:] == (4, 6)


def test_an_imported_run_can_be_compared(exported, tmp_path):
    import_rollouts(str(exported["pi0"]), str(tmp_path / "run"), "pi0_libero", ["mean", "mean"])
    config = BenchConfig((tmp_path / "run",), tmp_path / "bench", fractions=(0.4, 0.2, 0.4))
    config = dataclasses.replace(config, detectors=("trajectory_length",), draws=5, seed=5)
    recorded = read_runs(config, progress=False)
    assert recorded.about["hidden"] == ["pre_velocity"]
    assert recorded.episodes("hidden").dim == 6


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_a_command_is_refused(exported, tmp_path, capsys):
    folder, trap = tmp_path / "bad", tmp_path / "trap"
    where = "policy_records/00000000_meta.pkl"
    shutil.copytree(exported["pi0"], folder)
    data = pickle.loads((folder / where).read_bytes())
    (folder / where).write_bytes(pickle.dumps(data | {"extra": Command(trap)}))
    assert main(["import-safe", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "system, which is not data" in error and where.split("/")[1] in error
    assert not trap.exists()
    pickle.loads((folder / where).read_bytes())
    assert trap.exists()  # the file was dangerous indeed


def written(tmp_path, data):
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.ones((2, 3), np.float16)),
        np.arange(3).astype(ml_dtypes.bfloat16),
        np.array([1, 2], ">i4"),
        np.array(["ab", "c"]),
        np.zeros((0, 4)),
        np.array(3.0),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_arrays_of_every_protocol_are_read(value, protocol, tmp_path):
    data = {"x": value, "n": 3, "text": "t", "none": None, "scalar": value.dtype.type(1)}
    got = load(written(tmp_path, pickle.dumps(data, protocol)))
    assert got["x"].dtype.kind == value.dtype.kind and got["x"].shape == value.shape
    np.testing.assert_array_equal(got["x"], value)
    assert got["scalar"] == data["scalar"] and (got["n"], got["text"]) == (3, "t")


class Call:
    """Pickles as a call of anything with anything."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    "value",
    [
        Call(eval, "1 + 1"),
        Call(getattr, "a", "upper"),
        Call(np.load, "x.npy"),
        Call(np.ndarray, (2,)),
        np.array([{}, 1], object),
        Trace,
        sys.exit,
    ],
    ids=["eval", "getattr", "load", "ndarray", "objects", "class", "exit"],
)
def test_everything_else_is_refused(value, tmp_path):
    with pytest.raises(PickleRefused):
        load(written(tmp_path, pickle.dumps(value)))


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04rest", pickle.dumps([1])[:-3]])
def test_damaged_files_and_archives_are_refused(data, tmp_path):
    with pytest.raises(PickleRefused, match=r"file\.pkl"):
        load(written(tmp_path, data))


def test_files_name_no_module_but_numpys(exported):
    for path in exported["openvla"].glob("*.pkl"):
        names = [a for op, a, _ in pickletools.genops(path.read_bytes()) if "BINUNICODE" in op.name]
        assert not [name for name in names if name.startswith("mistjax")]


def test_a_folder_in_no_layout_and_an_incomplete_one_are_named(exported, tmp_path):
    with pytest.raises(ValueError, match="env_records"):
        import_rollouts(str(tmp_path), str(tmp_path / "out"), None, [])
    folder = tmp_path / "pi0"
    shutil.copytree(exported["pi0"], folder)
    max((folder / "policy_records").iterdir()).unlink()
    with pytest.raises(ValueError, match="incomplete"):
        import_rollouts(str(folder), str(tmp_path / "out"), None, [])


def test_what_does_not_fit_a_layout_is_refused(run, tmp_path):
    for feature, message in (
        ("nothing", "was not recorded"),
        (TOKENS, r"\[N,steps,horizon,D\]"),
    ):
        with pytest.raises(ValueError, match=message):
            export_rollouts(str(run), str(tmp_path / "out"), feature, "pi0")
