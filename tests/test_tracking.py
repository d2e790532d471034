"""Numbers on their way to Weights & Biases and TensorBoard; nowhere unless it is asked for."""

import sys

import pytest

from mistjax.cli import main
from mistjax.tracking import Trackers


def test_nothing_is_logged_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with Trackers().open("run", {}) as log:
        log({"loss": 1.0}, 1)


@pytest.mark.parametrize("extra", ["wandb", "tensorboard"])
def test_what_is_not_installed_is_refused_before_anything_is_read(
    extra, tmp_path, monkeypatch, capsys
):
    module = {"wandb": "wandb", "tensorboard": "tensorboard.summary"}[extra]
    monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / "detector"
    code = main(["train-detector", "nowhere", "--out", str(out), f"--{extra}", str(tmp_path / "x")])
    assert code == 2 and not out.exists()
    assert f"pip install 'mistjax[{extra}]', or leave out --{extra}." in capsys.readouterr().err


def test_tensorboard_reads_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    with Trackers(tensorboard=tmp_path).open("run", {"seed": 0}) as log:
        for step in (1, 2):
            log({"loss": 1.0 / step, "held_out/roc_auc": 0.5}, step)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert sorted(events.Tags()["tensors"]) == ["held_out/roc_auc", "loss"]
    found = [
        (e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in events.Tensors("loss")
    ]
    assert found == [(1, 1.0), (2, 0.5)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_keeps_a_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with Trackers(wandb="project").open("run", {"seed": 3}) as log:
        log({"loss": 0.25}, 1)
    wandb.teardown()  # its own process has written all then
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = file.read_bytes()
    assert all(part in written for part in (b"loss", b"0.25", b"seed", b"project"))
