import contextlib
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, save

from mistjax.rollouts import RunWriter, Trace, load_run, run_episodes
from mistjax.rollouts.lock import FolderBusyError
from mistjax.rollouts.mp4 import read_mp4
from mistjax.rollouts.store import _ROWS_BETWEEN_TABLES
from mistjax.rollouts.trace import to_json

CONFIG = {"policy": "p", "perturbation": {"light": 0.5}}


def make_trace(seed=0, inferences=3, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "seed": seed,
        "env_id": "Toy-v0",
        "task": "t",
        "prompt": "do it",
        "policy": "p",
        "policy_fingerprint": "f",
        "success": seed % 2 == 0,
        "state": rng.normal(size=(2 * inferences, 5)),
        "actions": rng.normal(size=(2 * inferences, 4)),
        "chunks": rng.normal(size=(inferences, 8, 4)),
        "inference_step": np.arange(inferences) * 2,
        "timings_ms": np.ones(inferences),
        "features": {"vlm.resid@0/all/mean": rng.normal(size=(inferences, 1, 6))},
    }
    return Trace(**(fields | changes))


def test_a_stored_episode_comes_back_as_it_was(tmp_path, same):
    trace = make_trace(
        3,
        score=np.array([0.1, np.nan, np.inf]),
        threshold=np.full(3, np.inf),
        alarm=np.array([False, True, True]),
        edited=np.array([False, False, True]),
        perturbation={"light": 0.5},
        failure_cause="dropped",
        info={"placement_error_m": 0.02},
        aux={"entropy": np.ones(3)},
        images={"observation/image": np.zeros((3, 4, 4, 3), np.uint8)},
    )
    with RunWriter.open(tmp_path / "run", CONFIG) as writer:
        writer.add(trace)
    run = load_run(tmp_path / "run")
    assert run.config == CONFIG
    same(trace, run.trace(3))
    assert run.trace(3).tensors().keys() == trace.tensors().keys()
    assert run.rows[0]["first_alarm_step"] == 2
    assert run.rows[0]["edited_inferences"] == 1


def test_an_episode_that_crashed_before_its_first_step_can_be_stored(tmp_path):
    empty = make_trace(inferences=0, success=None, error="Traceback ...", features={})
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(empty)
        assert not (tmp_path / "run.json").exists(), "nothing says yet that the set-up can work"
        writer.add(make_trace(1))
    run = load_run(tmp_path)
    assert [row["seed"] for row in run.finished] == [1] and run.crashed == (0,)
    assert run.trace(0).error == "Traceback ..."
    assert run.trace(0).chunks.shape == (0, 8, 4)


def test_the_table_has_one_row_an_episode(tmp_path):
    with RunWriter.open(tmp_path, CONFIG) as writer:
        for seed in (5, 1, 3):
            writer.add(make_trace(seed))
    table = pq.read_table(tmp_path / "episodes.parquet")
    assert table["seed"].to_pylist() == [1, 3, 5]
    assert table["success"].to_pylist() == [False, False, False]
    assert json.loads(table["perturbation"][0].as_py()) == {}


def test_a_reader_sees_stored_episodes_before_the_table_does(tmp_path):
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(1))
        assert not (tmp_path / "episodes.parquet").exists()
        assert load_run(tmp_path).seeds == (1,)
        writer.write_table()
        writer.add(make_trace(2))
        assert pq.read_table(tmp_path / "episodes.parquet").num_rows == 1
        assert load_run(tmp_path).seeds == (1, 2)


def test_the_table_lags_behind_by_fewer_episodes_than_it_says(tmp_path):
    with RunWriter.open(tmp_path, CONFIG) as writer:
        for seed in range(_ROWS_BETWEEN_TABLES + 1):
            writer.add(make_trace(seed, 1))
        assert pq.read_table(tmp_path / "episodes.parquet").num_rows == _ROWS_BETWEEN_TABLES
    assert pq.read_table(tmp_path / "episodes.parquet").num_rows == _ROWS_BETWEEN_TABLES + 1


def test_settings_without_a_json_form_are_refused(tmp_path):
    for value in (float("nan"), np.array([np.inf]), object(), {1, 2}):
        with pytest.raises(ValueError):
            RunWriter.open(tmp_path, {"option": value})
    settings = {"b": (np.float32(0.5), None), "a": np.arange(2)}
    assert to_json(settings) == '{"a": [0, 1], "b": [0.5, null]}'
    assert not list(tmp_path.iterdir())


def test_unknown_times_give_no_median():
    assert make_trace(0, timings_ms=np.full(3, np.nan)).row()["median_ms"] is None
    assert make_trace(0, timings_ms=np.array([3.0, 1.0, 2.0])).row()["median_ms"] == 2.0


def test_half_written_episodes_are_invisible(tmp_path):
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(1))
    (tmp_path / "traces" / ".000002.safetensors.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / "videos" / "000002.mp4").write_bytes(b"of an episode that was not stored")
    assert load_run(tmp_path).seeds == (1,)
    with RunWriter.open(tmp_path, CONFIG) as writer:
        assert writer.seeds == {1}
        assert [f.name for f in (tmp_path / "traces").iterdir()] == ["000001.safetensors"]
        assert not list((tmp_path / "videos").iterdir())


def test_a_table_without_its_traces_still_loads(tmp_path):
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(1))
    (tmp_path / "traces" / "000001.safetensors").unlink()
    run = load_run(tmp_path)
    assert run.seeds == (1,)
    with pytest.raises(FileNotFoundError, match="not the trace"):
        run.trace(1)


def test_another_configuration_is_refused_and_its_fields_named(tmp_path):
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(0))
    with RunWriter.open(tmp_path, dict(CONFIG)):
        pass
    with pytest.raises(ValueError, match=r"perturbation was .*0.5.* now \{\}"):
        RunWriter.open(tmp_path, CONFIG | {"perturbation": {}})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(FileExistsError, match="not a run folder"):
        RunWriter.open(tmp_path, CONFIG)
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        load_run(tmp_path)


def test_nothing_but_crashes_leaves_no_folder(tmp_path):
    with RunWriter.open(tmp_path / "run", CONFIG) as writer:
        writer.add(make_trace(success=None, error="Traceback ..."))
        assert (tmp_path / "run").exists()
    assert not (tmp_path / "run").exists()


def test_an_episode_that_is_run_again_takes_the_place_of_its_crash(tmp_path):
    crash = make_trace(2, success=None, error="Traceback ...")
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(1))
        writer.add(crash)
        assert (writer.seeds, writer.crashed) == ({1, 2}, {2})
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(2))
        assert writer.crashed == set()
        assert load_run(tmp_path).crashed == (), "though the table does not say so yet"
    assert load_run(tmp_path).trace(2).success is True


def test_a_writer_that_dies_leaves_a_run_that_goes_on(tmp_path, kill_at_every_call, same):
    """Whenever it dies: no folder or one that can be opened again, and whole episodes only."""
    folder, stored = tmp_path / "run", set()
    traces = [make_trace(0), make_trace(1, success=None, error="Traceback ..."), make_trace(2)]

    def record():
        writer = RunWriter.open(folder, CONFIG)
        writers.append(writer)
        with writer:
            for trace in traces:
                if trace.seed not in writer.seeds:
                    writer.add(trace)

    def bury():
        for writer in writers:
            with contextlib.suppress(OSError):
                os.close(writer._lock._handle)
        writers.clear()

    writers = []
    for _ in kill_at_every_call(record):
        bury()
        if (folder / "run.json").exists():
            run = load_run(folder)
            assert run.config == CONFIG
            for seed in run.seeds:
                same(run.trace(seed), traces[seed])
            stored.add(run.seeds)
        with RunWriter.open(folder, CONFIG) as writer:
            assert not [f for f in folder.rglob("*") if f.suffix == ".tmp"]
            writer.add(traces[0])
        assert load_run(folder).seeds[0] == 0
        shutil.rmtree(folder)
    assert stored == {(), (0,), (0, 1), (0, 1, 2)}
    assert sorted(f.name for f in folder.iterdir()) == [
        "episodes.parquet",
        "run.json",
        "traces",
        "videos",
    ]


def test_a_full_disk_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(1))
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="free some") as told,
        RunWriter.open(tmp_path, CONFIG) as writer,
    ):
        patch.setattr(os, "fsync", full)
        writer.add(make_trace(2))
    assert told.value.filename == str(tmp_path / "traces" / "000002.safetensors")
    with RunWriter.open(tmp_path, CONFIG) as writer:
        assert writer.seeds == {1}
        writer.add(make_trace(2))
    assert load_run(tmp_path).seeds == (1, 2)


def test_a_folder_has_one_writer(tmp_path):
    told = rf"written to by process {os.getpid()} since"
    with RunWriter.open(tmp_path, CONFIG), pytest.raises(FolderBusyError, match=told):
        RunWriter.open(tmp_path, CONFIG)
    with RunWriter.open(tmp_path, CONFIG):
        pass


def test_the_lock_of_a_process_that_died_is_taken_over_and_told(tmp_path, capsys):
    code = (
        "import os, sys; from pathlib import Path; from mistjax.rollouts.lock import FolderLock;"
        "FolderLock.take(Path(sys.argv[1])); os._exit(9)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    assert child.wait() == 9
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(0))
    assert f"process {child.pid} died while it wrote there since" in capsys.readouterr().err
    assert not (tmp_path / "run.lock").exists()


def test_a_lock_of_another_machine_is_never_taken_over(tmp_path, monkeypatch, capsys):
    lock = tmp_path / "run.lock"
    lock.write_text('{"pid": 12, "host": "far-away", "boot": "other", "since": "noon"}')
    with pytest.raises(FolderBusyError, match=r"process 12 of far-away since noon.*remove"):
        RunWriter.open(tmp_path, CONFIG)
    monkeypatch.setattr("platform.node", lambda: "far-away")  # it was started again
    with RunWriter.open(tmp_path, CONFIG):
        assert "process 12 died" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["", '{"pid"', "[1]"])
def test_a_lock_that_names_nobody_is_nobodys(tmp_path, left):
    (tmp_path / "run.lock").write_text(left)
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(0))
    assert load_run(tmp_path).seeds == (0,)


@pytest.mark.slow
def test_of_two_processes_exactly_one_is_admitted(tmp_path):
    """Forty races for one folder, each time with two configurations."""
    code = """
import sys, time
from pathlib import Path
from mistjax.rollouts.lock import FolderBusyError
from mistjax.rollouts.store import _ROWS_BETWEEN_TABLES
from mistjax.rollouts.trace import to_json
from mistjax.rollouts.store import RunWriter
for race in range(40):
    folder = Path(sys.argv[1]) / str(race)
    while time.time() < float(sys.argv[3]) + race / 4:
        pass
    try:
        with RunWriter.open(folder, {"arm": sys.argv[2]}) as writer:
            print(race, "admitted", flush=True)
            time.sleep(0.2)
    except FolderBusyError as error:
        assert str(error).count("\\n") == 0
        print(race, "refused", flush=True)
"""
    start = time.time() + 20
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path, arm, str(start)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for arm in ("a", "b")
    ]
    told = [racer.communicate(timeout=600)[0].splitlines() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    for race, pair in enumerate(zip(*told, strict=True)):
        assert sorted(pair) == [f"{race} admitted", f"{race} refused"]


def rewritten(**changes):
    """Another row in the header of a trace file."""

    def change(blob):
        tensors, row = load(blob), make_trace(1).row()
        return save(tensors, metadata={"episode": json.dumps(row | changes)})

    return change


TRACE = "traces/000001.safetensors"
DAMAGES = {
    "run.json empty": ("run.json", lambda _: b"", "run.json is empty"),
    "run.json cut off": ("run.json", lambda b: b[:40], "run.json is not JSON"),
    "run.json newer": ("run.json", lambda b: b.replace(b": 1", b": 9", 1), "format 9"),
    "run.json without a format": ("run.json", lambda _: b"{}", "its format is None"),
    "format true": ("run.json", lambda _: b'{"format": true}', "its format is True"),
    "no configuration": ("run.json", lambda _: b'{"format": 1}', "no configuration"),
    "table empty": ("episodes.parquet", lambda _: b"", "episodes.parquet is not the"),
    "table cut off": ("episodes.parquet", lambda b: b[:-20], "episodes.parquet is not"),
    "table of zeros": ("episodes.parquet", lambda b: bytes(len(b)), "episodes.parquet is"),
    "trace empty": (TRACE, lambda _: b"", r"000001\.safetensors is"),
    "trace cut off": (TRACE, lambda b: b[:-1], r"000001\.safetensors is"),
    "trace of LFS": (TRACE, lambda _: b"version https://git-lfs.github.com/spec/v1", "LFS"),
    "trace without a row": (TRACE, lambda b: save(load(b)), "is not a trace"),
    "seed of another": (TRACE, rewritten(seed=2), "it is of seed 2"),
    "no success": (TRACE, rewritten(success=None), "neither ended nor crashed"),
    "steps a word": (TRACE, rewritten(steps="six"), "steps of an episode is 'six'"),
    "fewer steps": (TRACE, rewritten(steps=1), "in an episode of 1 steps"),
    "negative": (TRACE, rewritten(inferences=-1), "inferences are"),
    "a list": (TRACE, rewritten(info=[]), r"info of an episode is \[\]"),
}


@pytest.mark.parametrize("name, change, told", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_is_refused_in_one_sentence_that_names_the_file(tmp_path, name, change, told):
    folder = tmp_path / "run"
    with RunWriter.open(folder, CONFIG) as writer:
        writer.add(make_trace(1))
    if name == TRACE:  # else the table knows the row
        (folder / "episodes.parquet").unlink()
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=told) as refused:
        list(load_run(folder).traces())
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_features_are_padded_to_the_longest_episode_and_leave_crashes_out(tmp_path):
    lengths = {0: 2, 1: 4, 2: 3}
    with RunWriter.open(tmp_path, CONFIG) as writer:
        for seed, length in lengths.items():
            writer.add(make_trace(seed, length))
        writer.add(make_trace(3, 9, success=None, error="Traceback ..."))
    run = load_run(tmp_path)
    features = run.features("vlm.resid@0/all/mean")
    assert features.values.shape == (3, 4, 1, 6)
    np.testing.assert_array_equal(features.mask.sum(1), [2, 4, 3])
    np.testing.assert_array_equal(features.success, [True, False, True])
    np.testing.assert_array_equal(features.seeds, [0, 1, 2])
    assert (features.values[~features.mask] == 0).all()
    np.testing.assert_array_equal(features.values[1], run.trace(1).features["vlm.resid@0/all/mean"])
    with pytest.raises(ValueError, match="was not recorded"):
        run.features("vlm.resid@1/all/mean")


def test_only_chosen_episodes_have_a_video_and_it_shows_every_step(policy, make_env, tmp_path):
    run = run_episodes(policy, make_env, [1, 2], out=tmp_path, record_video=[2], progress=False)
    assert run.video(1) is None
    frames, fps = read_mp4(run.video(2))
    trace = run.trace(2)
    assert fps == 5
    assert frames.shape == (len(trace.actions) + 1, 384, 768, 3)
    assert trace.images["observation/image"].shape == (len(trace.chunks), 16, 16, 3)
    assert run.trace(1).images == {}
    seen = trace.images["observation/image"][0].astype(int)
    shown = frames[0, 12::24, 12:384:24].astype(int)
    assert np.abs(seen - shown).max() < 12


def test_a_trace_whose_arrays_do_not_belong_together_is_refused():
    with pytest.raises(TypeError, match="inference_step"):
        dataclasses.replace(make_trace(), inference_step=np.arange(2))
