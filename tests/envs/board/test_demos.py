"""Demonstrations: their shape, their cleanliness, and resuming."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mistjax.envs.board import demos
from mistjax.envs.board.captions import CAPTION_WORDS
from mistjax.envs.board.instructions import INSTRUCTION_WORDS


@pytest.fixture(scope="module")
def rows():
    return demos.demonstrate(3)


def test_columns_have_the_documented_shapes(rows):
    n = len(rows["state"])
    shapes = {k: (v.shape, v.dtype) for k, v in rows.items() if isinstance(v, np.ndarray)}
    assert shapes == {
        "image": ((n, 64, 64, 3), np.uint8),
        "wrist_image": ((n, 64, 64, 3), np.uint8),
        "state": ((n, 5), np.float32),
        "actions": ((n, 8, 4), np.float32),
        "aux": ((n, 6), np.float32),
        "episode": ((n,), np.int64),
    }
    assert len(rows["prompt"]) == len(rows["caption"]) == n > 5


def test_chunks_are_the_experts_own_actions(rows):
    assert np.abs(rows["actions"]).max() <= 1
    assert set(np.unique(rows["actions"][..., 3])) <= {-1.0, 1.0}


def test_words_come_from_the_vocabularies(rows):
    assert {w for p in rows["prompt"] for w in p.split()} <= set(INSTRUCTION_WORDS)
    assert {w for c in rows["caption"] for w in c.split()} <= set(CAPTION_WORDS)


def test_bursts_leave_clean_stretches_longer_than_a_chunk():
    for seed in range(5):
        bursts, clean, run = demos._Bursts(np.random.default_rng(seed)), [], 0
        for _ in range(100):
            action = np.zeros(4)
            if bursts(action) is action:
                run += 1
            elif run:
                clean.append(run)
                run = 0
        assert all(stretch > demos.HORIZON for stretch in clean[1:])


def test_a_shard_on_disk_is_kept_and_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "SHARD_EPISODES", 1)
    assert demos._shard((0, 3, 1, tmp_path)) == 1
    shard = tmp_path / "shard_0000.safetensors"
    arrays, words = load_file(shard), json.loads(shard.with_suffix(".json").read_text())
    assert len(words["prompt"]) == len(words["caption"]) == len(arrays["state"])
    written = shard.stat().st_mtime_ns
    demos._shard((0, 3, 1, tmp_path))
    assert shard.stat().st_mtime_ns == written
    demos._claim(tmp_path, {"seed": 1})
    with pytest.raises(ValueError, match="another folder"):
        demos._claim(tmp_path, {"seed": 2})
