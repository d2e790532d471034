"""SAFE's rollout files: round trips, and pickles that are refused."""

import dataclasses
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import mistjax
from mistjax.cli import main
from mistjax.detect.bench import BenchConfig
from mistjax.detect.bench.episodes import read_runs
from mistjax.rollouts.formats.safe.converter import export_rollouts, import_rollouts
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


def test_the_command_line_converts_in_a_process_that_imports_nothing_beside_the_files(
    run, tmp_path, capsys, monkeypatch
):
    folder, back = tmp_path / "safe", str(tmp_path / "run")
    assert main(["export-safe", str(run), "--out", str(folder), "--feature", STEPS]) == 0
    for name in ("csv", "json", "struct", "numpy", "sitecustomize", "mistjax"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'trap')!r}, 'w')")
    monkeypatch.chdir(folder)
    assert main(["import-safe", ".", "--out", back, "--pool", "mean"]) == 0
    assert not (tmp_path / "trap").exists()
    shown = capsys.readouterr()
    assert "6 episodes" in shown.out and "import only files that you trust" in shown.err
    trace = next(load_run(back).traces())
    assert trace.features["pre_velocity"].shape[1:] == (4, 6)


def test_python_m_imports_nothing_from_the_folder_it_is_called_in_either(tmp_path):
    for name in ("csv", "json", "tyro", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'trap')!r}, 'w')")
    environment = os.environ | {"PYTHONPATH": str(Path(mistjax.__file__).parents[1])}
    command = [sys.executable, "-m", "mistjax.cli", "import-safe", ".", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "no rollouts in a layout of SAFE's" in done.stderr
    assert not (tmp_path / "trap").exists()


def test_an_imported_run_can_be_compared(exported, tmp_path):
    import_rollouts(str(exported["pi0"]), str(tmp_path / "run"), "pi0_libero", ["mean", "mean"])
    config = BenchConfig((tmp_path / "run",), tmp_path / "bench", fractions=(0.4, 0.2, 0.4))
    config = dataclasses.replace(config, detectors=("mahalanobis",), draws=5, seed=5)
    recorded = read_runs(config, progress=False)
    assert recorded.about["hidden"] == ["pre_velocity"]
    (case,) = recorded.cases
    assert recorded.episodes(case.reads).dim == 6


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


@pytest.fixture
def copied(exported, tmp_path):
    """OpenVLA's files, to be spoilt."""
    folder = tmp_path / "download"
    shutil.copytree(exported["openvla"], folder)
    return folder


def imported(folder, tmp_path):
    import_rollouts(str(folder), str(tmp_path / "out"), None, [])


def test_no_link_is_followed(copied, exported, tmp_path):
    (tmp_path / "secret").write_text("secret")
    for pattern in ("*.pkl", "*.csv", "*.mp4"):
        path = next(copied.glob(pattern), copied / f"{next(copied.glob('*.pkl')).stem}.mp4")
        whole = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "secret")
        with pytest.raises(ValueError, match="is a symbolic link, which is not followed"):
            imported(copied, tmp_path)
        path.unlink()
        if whole:
            path.write_bytes(whole)
    (tmp_path / "link").symlink_to(copied)
    with pytest.raises(ValueError, match="symbolic link"):
        imported(tmp_path / "link", tmp_path)
    shutil.copytree(exported["pi0"], tmp_path / "pi0")
    (tmp_path / "pi0/env_records").rename(tmp_path / "elsewhere")
    (tmp_path / "pi0/env_records").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        imported(tmp_path / "pi0", tmp_path)


def test_a_video_that_is_a_link_is_not_exported(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (tmp_path / "secret").write_text("secret")
    for seed in range(10, 16):
        (copy / f"videos/{seed:06d}.mp4").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="symbolic link"):
        export_rollouts(str(copy), str(tmp_path / "safe"), TOKENS, "openvla")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_states": []}, "no hidden states"),
        ({"hidden_states": ["text"]}, "hold <U4, expected numbers"),
        ({"hidden_states": None}, "is not a rollout in SAFE's layout"),
        ({"hidden_states": [np.zeros((7, 6)), np.zeros((6, 6))]}, "tokens must be pooled"),
        ({"task_suite_name": None}, None),
        ({"task_id": "x"}, "invalid literal"),
        ({"episode_success": np.zeros(2)}, "truth value"),
    ],
)
def test_a_rollout_that_is_none_is_named(copied, tmp_path, changes, said):
    path = next(copied.glob("*.pkl"))
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | changes))
    if said is None:
        return imported(copied, tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        imported(copied, tmp_path)
    assert str(copied) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("\ufeffaction/dx\n1\n", "byte order mark"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("{whole}", None),
        ("{nan}", "not finite at every step"),
        ("{word}", "could not convert"),
        ("{short}", "is not a table of actions"),
    ],
)
def test_a_table_that_is_none_is_named(copied, tmp_path, text, said):
    path = min(copied.glob("*.csv"))
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    versions = {
        "whole": lines,
        "nan": [lines[0], ",".join(["nan", *cells[1:]]), *lines[2:]],
        "word": [lines[0], ",".join(["word", *cells[1:]]), *lines[2:]],
        "short": [lines[0], cells[0], *lines[2:]],
    }
    path.write_text(text.format(**{k: "\n".join(v) for k, v in versions.items()}))
    if said is None:
        return imported(copied, tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        imported(copied, tmp_path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("record", "changes", "said"),
    [
        ("env_records", {"replan_steps": 0}, "from 1 to H"),
        ("env_records", {"replan_steps": 10**6}, "from 1 to H"),
        ("env_records", {"model_infer_times": -1}, "incomplete"),
        ("env_records", {"model_infer_times": 2**60}, "incomplete"),
        ("policy_records", {"actions": np.array([1j])}, "expected numbers"),
        ("policy_records", {"actions": np.zeros(3)}, "is not a rollout|chunks|shape"),
        ("policy_records", {"actions": np.full((1, 7), np.nan)}, "not finite"),
        ("policy_records", {"pre_velocity": np.float32(1)}, "shapes|no hidden states"),
    ],
)
def test_a_record_that_is_none_is_named(exported, tmp_path, record, changes, said):
    folder = tmp_path / "pi0"
    shutil.copytree(exported["pi0"], folder)
    path = min((folder / record).iterdir())
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | changes))
    with pytest.raises(ValueError, match=said) as caught:
        imported(folder, tmp_path)
    assert str(folder) in str(caught.value) or "incomplete" in str(caught.value)
