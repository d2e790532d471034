"""The training loop: what it writes, and that an interruption changes nothing."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import board_training
from experiments.train.board_model import Batch
from experiments.train.board_pi0 import without_cameras
from experiments.train.board_training import Training, train
from mistjax.models.observation import Observation

TARGET = jnp.array([1.0, -2.0, 0.5])


@dataclasses.dataclass
class Point:
    """A policy that is its parameters."""

    params: dict

    def save(self, folder):
        (folder / "params").mkdir(parents=True)


def loss(params, batch, key):
    error = (params["model"]["w"] + params["head"]["b"] - TARGET)[None] - batch
    total = jnp.mean(jnp.square(error))
    return total, {"error": total}


def noise(rng, size):
    return np.float32(rng.normal(0, 0.1, (size, 3)))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(name, batch, slices)` trains for 60 steps; evaluations are counted, not made."""
    evaluated = []
    monkeypatch.setattr(
        board_training, "evaluate", lambda policy, n: evaluated.append(policy) or 0.25
    )

    def go(name, batch=noise, slices=1):
        config = Training(
            out=tmp_path / name, steps=60, batch_size=4, learning_rate=0.2, warmup=5, ema=0.9,
            checkpoint_every=20, keep_every=25, eval_every=40, slices=slices,
        )  # fmt: skip
        params = {"model": {"w": jnp.zeros(3)}, "head": {"b": jnp.zeros(3)}}
        return train(config, params, loss, batch, lambda p: Point(p)), evaluated

    return go


def test_an_interrupted_training_goes_on_to_the_same_weights(run):
    whole, _ = run("whole")
    drawn = []

    def breaks(rng, size):
        drawn.append(size)
        if len(drawn) >= 33:  # it is drawn at most eight steps ahead
            raise KeyboardInterrupt
        return noise(rng, size)

    with pytest.raises(KeyboardInterrupt):
        run("parts", breaks)
    drawn.clear()
    parts, _ = run("parts", lambda rng, size: (drawn.append(size), noise(rng, size))[1])
    assert len(drawn) == 40  # from the checkpoint at step 20 on
    np.testing.assert_array_equal(parts.params["w"], whole.params["w"])


def test_a_batch_in_slices_teaches_the_same(run):
    whole, sliced = run("whole")[0], run("sliced", slices=2)[0]
    np.testing.assert_allclose(sliced.params["w"], whole.params["w"], atol=1e-5)
    with pytest.raises(ValueError, match="slices is 3: expected a divisor of batch_size, 4"):
        run("uneven", slices=3)


def test_each_camera_is_left_out_of_its_share_of_the_examples():
    obs = Observation(
        images={name: np.zeros((4000, 1, 1, 3)) for name in ("front", "wrist")},
        image_masks={name: np.ones(4000, bool) for name in ("front", "wrist")},
        state=np.zeros((4000, 1)),
        tokenized_prompt=np.zeros((4000, 1), np.int32),
        tokenized_prompt_mask=np.ones((4000, 1), bool),
    )
    batch = Batch(obs, np.zeros(()), np.zeros(()), np.zeros(()))
    masks = without_cameras(batch, 0.25, np.random.default_rng(0)).obs.image_masks
    assert [masks[name].mean() for name in masks] == pytest.approx([0.75, 0.75], abs=0.03)
    assert (masks["front"] | masks["wrist"]).all()
    assert without_cameras(batch, 0.0, np.random.default_rng(0)).obs.image_masks["front"].all()


def test_the_averaged_weights_are_evaluated_saved_and_returned(run, tmp_path):
    policy, evaluated = run("run")
    assert len(evaluated) == 2 and (evaluated[-1].params["w"] == policy.params["w"]).all()
    np.testing.assert_allclose(policy.params["w"], TARGET / 2, atol=0.1)
    folders = {path.parent.name for path in tmp_path.glob("*/params")}
    assert folders == {"run", "run_00025", "run_00050"}
    log = (tmp_path / "run.training" / "log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in log]
    assert [(r["step"], r["success"]) for r in log if "success" in r] == [(40, 0.25), (60, 0.25)]
    assert next(r["error"] for r in log if r["step"] == 50) < 0.5  # it began at 1.75
