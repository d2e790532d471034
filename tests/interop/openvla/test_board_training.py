"""The training of the board's OpenVLA, on a handful of random frames."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from experiments.train.board_openvla import Config, Training
from experiments.train.board_openvla_model import LossWeights, board_loss

FRAMES = 24


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("demos"), np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 255, (FRAMES, 64, 64, 3), np.uint8),
        "wrist_image": rng.integers(0, 255, (FRAMES, 64, 64, 3), np.uint8),
        "state": rng.normal(size=(FRAMES, 5)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (FRAMES, 8, 4)).astype(np.float32),
        "aux": rng.normal(0, 0.1, (FRAMES, 6)).astype(np.float32),
    }
    save_file(arrays, folder / "shard_0000.safetensors")
    prompt = "quickly put the black stone on row 1 column 2 , carry it high"
    text = {"prompt": [prompt] * FRAMES, "caption": ["move left slowly"] * FRAMES}
    (folder / "shard_0000.json").write_text(json.dumps(text))
    return folder


def config(demos, out, **changes):
    return Config(out, demos=(demos,), batch_size=8, warmup=1, learning_rate=3e-3, **changes)


@pytest.mark.parametrize("decoding", ["oft", "token"])
def test_every_trained_weight_gets_a_gradient(demos, tmp_path, decoding):
    training = Training(config(demos, tmp_path, decoding=decoding))
    training.optimizer.zero_grad()
    batch = training.data.batch(np.random.default_rng(0), 8)
    total, parts = board_loss(training.net, batch, LossWeights(every=1))
    total.backward()
    assert all(torch.isfinite(value) for value in parts.values())
    still = [n for n, value in training.weights.items() if value.grad is None]
    unused = ("featurizer.blocks.2.", "featurizer.norm.")  # the last block of a tower never runs
    assert all(any(part in name for part in unused) for name in still)


@pytest.mark.parametrize("decoding", [pytest.param("oft", marks=pytest.mark.slow), "token"])
def test_it_learns_a_handful_of_frames_by_heart(demos, tmp_path, decoding):
    training = Training(config(demos, tmp_path, decoding=decoding, steps=60))
    losses = [float(training.update()["action"]) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(demos, tmp_path):
    whole = Training(config(demos, tmp_path, steps=6))
    for _ in range(6):
        whole.update()
    half = Training(config(demos, tmp_path, steps=6))
    for _ in range(3):
        half.update()
    half.save(tmp_path / "state.safetensors")
    again = Training(config(demos, tmp_path, steps=6, seed=1))
    again.config = half.config
    again.load(tmp_path / "state.safetensors")
    for _ in range(3):
        again.update()
    assert again.step == whole.step
    for name, value in whole.average.items():
        torch.testing.assert_close(again.average[name], value, atol=1e-6, rtol=1e-5)


def test_a_second_training_starts_from_the_first_and_keeps_its_statistics(demos, tmp_path):
    first = Training(config(demos, tmp_path / "first", steps=2))
    first.update()
    first.policy().save(tmp_path / "first")
    second = Training(config(demos, tmp_path / "second", start=tmp_path / "first"))
    policies = [first.policy(), second.policy()]
    weights = [policy.model.state_dict() for policy in policies]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert policies[0].model.config == policies[1].model.config


def test_expert_actions_and_states_are_read_within_their_range(demos, tmp_path):
    data = Training(config(demos, tmp_path)).data
    for name in ("actions", "state"):
        assert np.abs(data.columns[name]).max() == 1.0
    assert data.columns["prompt"].shape == (FRAMES, 16)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        Training(dataclasses.replace(Config(), demos=(tmp_path,)))
