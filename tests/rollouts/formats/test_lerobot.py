"""A run as a LeRobotDataset: the documented layout, and what lerobot itself reads."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mistjax.cli import main
from mistjax.rollouts import run_episodes
from mistjax.rollouts.formats.lerobot import export_lerobot
from mistjax.rollouts.mp4 import read_mp4

SEEDS, FILMED = range(5), (0, 2, 3)
CAMERAS = ("observation.images.image", "observation.images.wrist_image")


@pytest.fixture
def run(policy, make_env, tmp_path):
    return run_episodes(
        policy,
        lambda: make_env(crash_on=(4,)),
        SEEDS,
        out=tmp_path / "run",
        record_video=FILMED,
        num_envs=2,
        progress=False,
    )


@pytest.fixture
def dataset(run, tmp_path):
    export_lerobot(run, tmp_path / "dataset")
    return tmp_path / "dataset"


def rows(path):
    return pq.read_table(path).to_pylist()


def test_the_layout_is_the_documented_one(dataset, run):
    names = {p.relative_to(dataset).as_posix() for p in dataset.rglob("*") if p.is_file()}
    videos = {f"videos/{c}/chunk-000/file-{i:03d}.mp4" for c in CAMERAS for i in range(3)}
    meta = {"meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/mistjax.json"}
    tables = {"data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"}
    assert names == videos | meta | tables

    info = json.loads((dataset / "meta/info.json").read_text())
    steps = [len(run.trace(seed).actions) for seed in FILMED]
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 5, {"train": "0:3"})
    assert (info["total_episodes"], info["total_frames"]) == (3, sum(steps))
    features = info["features"]
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": None}
    assert {features[c]["dtype"] for c in CAMERAS} == {"video"}
    assert features[CAMERAS[0]]["shape"] == [16, 16, 3]
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
        assert features[name]["shape"] == [1]
    table = pq.read_table(dataset / "data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(features) - set(CAMERAS)
    assert not [name for name in features if "/" in name]


def test_frames_hold_what_was_observed_and_done(dataset, run):
    data = rows(dataset / "data/chunk-000/file-000.parquet")
    episodes = rows(dataset / "meta/episodes/chunk-000/file-000.parquet")
    tasks = rows(dataset / "meta/tasks.parquet")
    assert tasks == [{"task_index": 0, "task": "go to the middle"}]
    for row, seed in zip(episodes, FILMED, strict=True):
        trace = run.trace(seed)
        part = data[row["dataset_from_index"] : row["dataset_to_index"]]
        assert row["length"] == len(part) == len(trace.actions)
        np.testing.assert_array_equal([f["action"] for f in part], trace.actions)
        np.testing.assert_array_equal([f["observation.state"] for f in part], trace.state)
        times = np.arange(len(part)) / 5
        np.testing.assert_allclose([f["timestamp"] for f in part], times, rtol=1e-6)
        assert [f["next.done"] for f in part] == [False] * (len(part) - 1) + [True]
        assert part[-1]["next.success"] == trace.success == row["mistjax/success"]
        assert {f["episode_index"] for f in part} == {row["episode_index"]}
        assert row["mistjax/policy_fingerprint"] == "abc" and row["mistjax/seed"] == seed
        np.testing.assert_allclose(row["stats/action/mean"], trace.actions.mean(0), rtol=1e-5)
        for camera in CAMERAS:
            assert row[f"videos/{camera}/to_timestamp"] == pytest.approx(len(part) / 5)
    assert [f["index"] for f in data] == list(range(len(data)))


def test_each_camera_shows_what_the_policy_saw(dataset, run):
    for index, seed in enumerate(FILMED):
        trace = run.trace(seed)
        for camera, key in zip(CAMERAS, sorted(trace.images), strict=True):
            frames, fps = read_mp4(dataset / f"videos/{camera}/chunk-000/file-{index:03d}.mp4")
            assert fps == 5 and len(frames) == len(trace.actions)
            seen = frames[trace.inference_step].astype(int)
            assert np.abs(seen - trace.images[key]).mean() < 12


def test_statistics_are_of_all_frames(dataset):
    stats = json.loads((dataset / "meta/stats.json").read_text())
    data = rows(dataset / "data/chunk-000/file-000.parquet")
    actions = np.array([frame["action"] for frame in data])
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), rtol=1e-5)
    assert stats["action"]["count"] == [len(data)]
    assert np.shape(stats[CAMERAS[0]]["mean"]) == (3, 1, 1)
    assert 0 <= np.min(stats[CAMERAS[0]]["min"]) <= np.max(stats[CAMERAS[0]]["max"]) <= 1


def test_the_command_line_says_what_was_left_out(run, tmp_path, capsys):
    out = tmp_path / "filmed"
    assert main(["export-lerobot", str(run.path), "--out", str(out)]) == 0
    assert "3 episodes" in (told := capsys.readouterr().out) and "1 without video left out" in told
    assert main(["export-lerobot", str(run.path), "--out", str(out)]) == 2
    plain = ["export-lerobot", str(run.path), "--out", str(tmp_path / "all"), "--no-pictures"]
    assert main(plain) == 2
    assert "control rate" in capsys.readouterr().err
    assert main([*plain, "--fps", "5"]) == 0
    assert "4 episodes" in capsys.readouterr().out
    assert not (tmp_path / "all" / "videos").exists()


def test_lerobot_reads_it(dataset, run):
    pytest.importorskip("lerobot", reason="needs lerobot")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    read = LeRobotDataset("someone/run", root=dataset, video_backend="pyav")
    assert read.num_episodes == 3 and read.meta.fps == 5
    start = len(run.trace(0).actions)
    frame = read[start + 1]
    np.testing.assert_array_equal(frame["action"].numpy(), run.trace(2).actions[1])
    assert frame["task"] == "go to the middle" and frame[CAMERAS[0]].shape == (3, 16, 16)
