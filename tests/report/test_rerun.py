"""Exported episodes, read back with Rerun itself."""

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.report.rerun import export_rerun, write_episode
from mistjax.rollouts.run import load_run

rr = pytest.importorskip("rerun")
from rerun.chunk import RrdReader  # noqa: E402 (only where there is one)


def columns(file):
    """(entity, component) -> its values, in the order of the steps."""
    found = {}
    for chunk in RrdReader(file).stream():
        batch = chunk.to_record_batch()
        steps = (
            batch.column("step").to_pylist() if "step" in batch.schema.names else [-1] * len(batch)
        )
        for name in batch.schema.names:
            for step, value in zip(steps, batch.column(name).to_pylist(), strict=True):
                if value is not None:
                    found.setdefault((chunk.entity_path, name), []).append((step, value))
    return {
        key: [v for _, v in sorted(rows, key=lambda row: row[0])] for key, rows in found.items()
    }


def one(found, entity, part):
    (values,) = [v for (path, name), v in found.items() if path == entity and part in name]
    return values


def test_an_episode_reads_back_as_it_was(trace, tmp_path):
    episode = trace()
    write_episode(episode, tmp_path / "0.rrd", plain=episode.actions + 1)
    found = columns(tmp_path / "0.rrd")
    scores = one(found, "/monitor/failure_score/score", "scalars")
    assert np.allclose(np.ravel(scores), episode.score)
    assert np.allclose(np.ravel(one(found, "/monitor/failure_score/threshold", "scalars")), 0.5)
    states = np.ravel(one(found, "/monitor/state", "state"))
    assert [*states] == ["watching", "ALARM", "ALARM · steering", "failed: wrong cell"]
    executed = np.ravel(one(found, "/actions/action_1/executed", "scalars"))
    plain = np.ravel(one(found, "/actions/action_1/plain", "scalars"))
    assert np.allclose(executed, episode.actions[:, 1]) and np.allclose(plain, executed + 1)
    pictures = one(found, "/cameras/front", "buffer")
    assert np.array_equal(np.ravel(pictures[0]), episode.images["observation/image"][0].ravel())
    assert "above its threshold" in str(one(found, "/said", "text"))


def test_the_views_are_arranged(trace, tmp_path):
    write_episode(trace(), tmp_path / "0.rrd")
    assert len(RrdReader(tmp_path / "0.rrd").blueprints()) == 1


def test_what_is_unusual_is_laid_over_the_picture_at_an_alarm(trace, tmp_path):
    cells = np.zeros((4, 1, 4, 4), np.float32)
    cells[2, 0, 0, 0] = 99.0
    episode = trace(
        unsound=np.array([False, False, True, False]),
        input_score=np.zeros(4),
        input_threshold=np.ones(4),
        aux={"evidence/cells": cells},
    )
    write_episode(episode, tmp_path / "0.rrd", inputs=("front",))
    seen = one(columns(tmp_path / "0.rrd"), "/cameras/front", "buffer")
    changed = [not np.array_equal(np.ravel(p), np.full(16 * 16 * 3, 90)) for p in seen]
    assert changed == [False, False, True, False]


def test_a_run_becomes_a_file_for_each_episode_with_pictures(run_folder, tmp_path, capsys):
    run = run_folder("monitored", [True, False], True)
    assert main(["export-rerun", str(run), "--out", str(tmp_path / "out")]) == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["000000.rrd"]
    assert "1 episodes" in capsys.readouterr().out
    done = export_rerun(load_run(run), tmp_path / "all", [0, 1], beside=load_run(run))
    assert len(done.files) == 2 and done.without_pictures == 1


def test_an_empty_run_and_an_unknown_seed_are_refused(memory, trace, tmp_path):
    with pytest.raises(ValueError, match="has no episode"):
        export_rerun(memory(), tmp_path)
    with pytest.raises(ValueError, match="no episode of seed 5"):
        export_rerun(memory(trace(0)), tmp_path, [5])
