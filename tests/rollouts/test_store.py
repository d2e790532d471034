import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mistjax.rollouts import RunWriter, Trace, load_run, run_episodes
from mistjax.rollouts.mp4 import read_mp4

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
    run = load_run(tmp_path)
    assert run.finished == ()
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
    writer = RunWriter.open(tmp_path, CONFIG)
    writer.add(make_trace(1))
    assert not (tmp_path / "episodes.parquet").exists()
    assert load_run(tmp_path).seeds == (1,)
    writer.write_table()
    writer.add(make_trace(2))
    assert pq.read_table(tmp_path / "episodes.parquet").num_rows == 1
    assert load_run(tmp_path).seeds == (1, 2)


def test_half_written_episodes_are_invisible(tmp_path):
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(1))
    (tmp_path / "traces" / ".000002.safetensors.dead.tmp").write_bytes(b"half")
    assert load_run(tmp_path).seeds == (1,)
    assert RunWriter.open(tmp_path, CONFIG).seeds == {1}


def test_a_table_without_its_traces_still_loads(tmp_path):
    with RunWriter.open(tmp_path, CONFIG) as writer:
        writer.add(make_trace(1))
    (tmp_path / "traces" / "000001.safetensors").unlink()
    run = load_run(tmp_path)
    assert run.seeds == (1,)
    with pytest.raises(FileNotFoundError, match="not the trace"):
        run.trace(1)


def test_another_configuration_is_refused_and_its_fields_named(tmp_path):
    RunWriter.open(tmp_path, CONFIG)
    RunWriter.open(tmp_path, dict(CONFIG))
    with pytest.raises(ValueError, match=r"perturbation was .*0.5.* now \{\}"):
        RunWriter.open(tmp_path, CONFIG | {"perturbation": {}})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(FileExistsError, match="not a run folder"):
        RunWriter.open(tmp_path, CONFIG)
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        load_run(tmp_path)


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
