import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.cross import attribution
from experiments.studies.cross.attribution import (
    ExecutedChange,
    agreement,
    over_seeds,
    stone_overlap,
)
from experiments.studies.cross.scenes import CAMERAS, Scene, kept_scenes
from experiments.studies.cross_architecture import as_table
from mistjax.envs.board.instructions import Task
from mistjax.policies.protocol import Sample

SEEDS = np.repeat(np.arange(40), 2)


def maps(rng, shared=None):
    heat = rng.random((len(SEEDS), 16)) if shared is None else shared
    return {f"action/{camera}": heat for camera in CAMERAS}


def test_equal_maps_agree_and_the_control_does_not():
    same = maps(np.random.default_rng(0))
    for row in agreement(same, same, SEEDS, "action").values():
        assert row["rho"] == pytest.approx(1.0)
        assert abs(row["control"]) < 0.1
        assert row["gain interval"][0] > 0.8


def test_a_habit_that_no_scene_changes_is_no_agreement_about_scenes():
    rng = np.random.default_rng(1)
    habit = np.arange(16.0)
    a, b = (maps(rng, habit + 0.1 * rng.random((len(SEEDS), 16))) for _ in range(2))
    row = agreement(a, b, SEEDS, "action")[CAMERAS[0]]
    assert row["rho"] > 0.9
    assert abs(row["gain"]) < 0.05


def test_a_map_that_is_constant_counts_nowhere():
    flat = maps(None, np.ones((len(SEEDS), 16)))
    row = agreement(flat, maps(np.random.default_rng(2)), SEEDS, "action")[CAMERAS[0]]
    assert row["scenes"] == 0


def test_a_camera_that_one_policy_lacks_is_left_out():
    full = maps(np.random.default_rng(3))
    front = {"action/base_0_rgb": full["action/base_0_rgb"]}
    assert set(agreement(full, front, SEEDS, "action")) == {"base_0_rgb"}


def test_the_interval_over_seeds_is_wider_than_one_over_scenes():
    by_seed = np.repeat(np.random.default_rng(4).normal(size=40), 2)
    low, high = over_seeds(by_seed, SEEDS)
    apart = over_seeds(by_seed, np.arange(len(by_seed)))
    assert high - low > 1.2 * (apart[1] - apart[0])


def scenes(rng):
    found = []
    for i, seed in enumerate(SEEDS):
        stone = np.zeros((64, 64), bool)
        y, x = rng.integers(0, 60, 2)
        stone[y : y + 4, x : x + 4] = True
        raw = {"image": rng.integers(0, 255, (4, 4, 3), np.uint8), "prompt": f"p{i}"}
        task = Task("black", 1, 2)
        found.append(Scene(int(seed), raw, task, bool(i % 2), dict.fromkeys(CAMERAS, stone)))
    return found


def test_a_map_of_the_stone_lies_on_the_stone():
    made = scenes(np.random.default_rng(5))
    on_stone = np.stack([attribution._patches(s.stone[CAMERAS[0]]) for s in made]).astype(float)
    row = stone_overlap(maps(None, on_stone), made, "action")
    assert row["share"] == 1.0
    assert row["control"] < 0.4
    assert row["scenes"] == len(made)


def test_kept_scenes_are_those_that_were_made(tmp_path, monkeypatch):
    made = scenes(np.random.default_rng(6))
    monkeypatch.setattr("experiments.studies.cross.scenes.expert_scenes", lambda *args: made)
    file = tmp_path / "new" / "scenes.safetensors"
    for _ in range(2):
        for scene, kept in zip(made, kept_scenes(file, 40, 0), strict=True):
            assert (scene.seed, scene.task, scene.carrying) == (kept.seed, kept.task, kept.carrying)
            assert scene.raw["prompt"] == kept.raw["prompt"]
            np.testing.assert_array_equal(scene.raw["image"], kept.raw["image"])
            np.testing.assert_array_equal(scene.stone[CAMERAS[1]], kept.stone[CAMERAS[1]])
        monkeypatch.setattr("experiments.studies.cross.scenes.expert_scenes", None)


def test_only_executed_actions_and_real_dimensions_count():
    plain = jnp.zeros((1, 8, 5))
    readout = ExecutedChange(plain[:, :4, :4])
    late = Sample(plain.at[:, 4:].set(9.0).at[..., 4].set(9.0), {}, {})
    assert readout(late)[0] < 1e-5
    assert readout(Sample(plain.at[0, 0, 0].set(4.0), {}, {}))[0] == pytest.approx(1.0, rel=1e-3)


def test_the_table_has_a_column_for_each_policy():
    dose = {"axis": "speed", "recipe": "value vectors", "change": [-0.1, 0.2], "rho": 1, "z": None}
    dose |= {"plain": 0.5, "asking": [0.2, 0.9]}
    rate = {"k": 3, "n": 4, "interval": [0.3, 0.9]}
    auc = {"early": 0.7, "full": 0.9, "early interval": [0.6, 0.8], "full interval": [0.8, 1.0]}
    row = {
        "counts": {"training": 2, "test": 4, "scenes": 3},
        "success": {"nominal": rate},
        "detection": auc,
        "stone": {"action": {"share": 0.3, "interval": [0.2, 0.4], "control": 0.1}},
        "steering": [dose],
        "overhead": {"ms quartiles": {"bare": [1, 2, 3], "monitored": [2, 3, 4]}},
    }
    other = row | {"counts": {"training": 1, "test": 2, "scenes": 3}}
    lines = as_table({"subjects": {"a": row, "b": other}}).splitlines()
    assert {line.count("|") for line in lines} == {4}
    assert lines[2].endswith("| 2 / 4 / 3 | 1 / 2 / 3 |")
    assert "75% [0.30, 0.90] (3/4)" in lines[3]
