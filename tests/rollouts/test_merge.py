import dataclasses

import numpy as np
import pytest

from mistjax.cli import main
from mistjax.rollouts import RunWriter, load_run
from mistjax.rollouts.merge import merge
from tests.rollouts.test_store import CONFIG, make_trace


def written(path, seeds, config=CONFIG, **changes):
    with RunWriter.open(path, config) as writer:
        for seed in seeds:
            writer.add(make_trace(seed, **changes))
    return load_run(path)


def test_every_episode_is_in_the_merged_run(tmp_path):
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    runs = [written(tmp_path / "a", [3, 1], frames=frames), written(tmp_path / "b", [2])]
    merged = merge(runs, tmp_path / "all")
    assert merged.seeds == (1, 2, 3)
    assert merged.config == runs[0].config
    assert merged.rows == (runs[0].rows[0], runs[1].rows[0], runs[0].rows[1])
    for run in runs:
        for seed in run.seeds:
            ours, theirs = merged.trace(seed), run.trace(seed)
            for field in dataclasses.fields(ours):
                np.testing.assert_equal(getattr(ours, field.name), getattr(theirs, field.name))
    assert merged.video(2) is None
    assert merged.video(1).read_bytes() == runs[0].video(1).read_bytes()


def test_a_merge_goes_on_and_keeps_what_is_there(tmp_path):
    first, second = written(tmp_path / "a", [1]), written(tmp_path / "b", [2])
    merge([first], tmp_path / "all")
    assert merge([first, second], tmp_path / "all").seeds == (1, 2)


def test_runs_that_do_not_belong_together(tmp_path):
    first = written(tmp_path / "a", [1])
    with pytest.raises(ValueError, match="seed 1 is in two of the runs"):
        merge([first, written(tmp_path / "b", [1])], tmp_path / "all")
    other = written(tmp_path / "c", [2], config={**CONFIG, "policy": "q"})
    with pytest.raises(ValueError, match="policy was 'p', now 'q'"):
        merge([first, other], tmp_path / "all")
    with pytest.raises(ValueError, match="no runs are given"):
        merge([], tmp_path / "all")


def test_the_command(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 2)):
        written(tmp_path / name, [seed])
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["merge", *folders, "--out", str(tmp_path / "all")]) == 0
    assert "2 episodes of 2 runs" in capsys.readouterr().out
    assert main(["merge", folders[0], "nowhere", "--out", str(tmp_path / "all")]) == 2
    assert "nowhere is not a run folder" in capsys.readouterr().err
