"""SAFE-MLP and SAFE-LSTM: scores, losses, gradients and training trajectories for recorded
weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mistjax.conformance.rows import Row, compare
from mistjax.detect.data import Episodes
from mistjax.detect.methods.safe.heads import SafeLSTM, SafeMLP
from mistjax.detect.methods.safe.losses import (
    LossConfig,
    class_weights,
    hard_negative_hinge,
    sequence_loss,
    time_weights,
)
from mistjax.detect.methods.safe.recipe import TrainConfig
from mistjax.detect.methods.safe.training import train
from mistjax.untrusted import read_npz

# variant -> options of the head, options of the loss
VARIANTS: dict[str, tuple[dict, dict]] = {
    "indep/default": ({}, {}),
    "indep/timew": ({}, {"time_weight": True}),
    "indep/rmean": ({"accumulate": "mean"}, {}),
    "indep/nocumsum": ({"accumulate": "none"}, {"l2": 0.0}),
    "indep/threshold": ({}, {"l2": 1.0, "threshold": 50.0}),
    "indep/l1": ({}, {}),
    "indep/l3relu": ({"output": "relu"}, {}),
    "indep/none": ({"output": "none"}, {}),
    "lstm/default": ({}, {}),
    "lstm/timew_hardneg": ({}, {"time_weight": True, "hard_negative": 0.7}),
    "lstm/l2": ({}, {"l2": 1e-1}),
    "lstm/cumsum": ({"accumulate": "sum"}, {}),
    "lstm/cumsum_rmean": ({"accumulate": "mean"}, {"time_weight": True}),
    "lstm/window5": ({"n_history": 5}, {}),
    "lstm/initscale": ({}, {}),
}
RUNS: dict[str, TrainConfig] = {
    "indep_adam": TrainConfig(epochs=30),
    "indep_adamw_warm_clip": TrainConfig(
        epochs=30, optimizer="adamw", warmup_epochs=5, decay_every=10, decay_rate=0.5, clip_norm=1.0
    ),
    "indep_sgdm": TrainConfig(epochs=30, optimizer="sgd", learning_rate=1e-4),
    "lstm_adam": TrainConfig(epochs=30, learning_rate=3e-4),
    "lstm_default_reg1": TrainConfig(epochs=30, learning_rate=3e-4, loss=LossConfig(l2=1.0)),
}


def recorded_head(arrays: Any, prefix: str, **options: Any) -> SafeMLP | SafeLSTM:
    """The head whose PyTorch parameters (or their gradients) are stored under `prefix`."""
    names = [k[len(prefix) :] for k in arrays if k.startswith(prefix)]

    def dense(weight: str, bias: str) -> dict[str, jax.Array]:
        kernel = jnp.asarray(arrays[prefix + weight]).T
        return {"kernel": kernel, "bias": jnp.asarray(arrays[prefix + bias])}

    if any(n.startswith("projector") for n in names):
        index = sorted({int(n.split(".")[1]) for n in names})
        stems = [f"projector.{i}." for i in index]
        return SafeMLP(tuple(dense(s + "weight", s + "bias") for s in stems), **options)
    depth = sum("weight_ih" in n for n in names)
    cells = tuple(
        {
            "input": dense(f"lstm.weight_ih_l{i}", f"lstm.bias_ih_l{i}"),
            "hidden": dense(f"lstm.weight_hh_l{i}", f"lstm.bias_hh_l{i}"),
        }
        for i in range(depth)
    )
    return SafeLSTM(cells, dense("fc.weight", "fc.bias"), **options)


def recorded_batch(folder: Path) -> tuple[Episodes, dict[str, np.ndarray]]:
    """The batch that the forward passes and trajectories were recorded on."""
    arrays = read_npz(folder / "batch.npz")
    valid = arrays["valid_masks"] > 0
    features = [x[m] for x, m in zip(arrays["features"], valid, strict=True)]
    return Episodes.from_sequences(features, arrays["success_labels"] > 0), arrays


def forward(folder: Path) -> list[Row]:
    """Scores, losses and gradients of every variant."""
    episodes, batch = recorded_batch(folder)
    recorded = read_npz(folder / "forward_losses.npz")
    x, mask, success = (
        jnp.asarray(a) for a in (episodes.features, episodes.mask, episodes.success)
    )
    doubled = LossConfig(fail_weight=2.0, success_weight=0.5)
    rows = [
        compare("weights", "time", time_weights(mask), batch["time_weight_on"], 1e-6),
        compare(
            "weights",
            "class",
            class_weights(success, LossConfig()),
            batch["class_weights_fail_succ"],
            1e-6,
        ),
        compare(
            "weights",
            "class, lambda 2 and 0.5",
            class_weights(success, doubled),
            batch["class_weights_lambda_fail2_succ0.5"],
            1e-6,
        ),
    ]
    weights = jnp.asarray(batch["class_weights_fail_succ"], jnp.float32)
    total = jax.value_and_grad(sequence_loss, has_aux=True)
    for name, (options, loss) in VARIANTS.items():
        config = LossConfig(**loss)
        head = recorded_head(recorded, f"{name}/w/", **options)
        score = head.sequence(x) * mask
        rows.append(compare(name, "scores", score, recorded[f"{name}/scores"] * mask, 1e-6))
        (value, parts), gradient = total(head, x, mask, success, weights, config, config.l2)
        order = ("monitor", "reg", "success_avg", "fail_avg", "hard_negative")
        losses = [value, *(parts[k] for k in order)]
        rows.append(compare(name, "losses", losses, recorded[f"{name}/losses"], 5e-6))
        wanted = recorded_head(recorded, f"{name}/grad/", **options)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True)
        worst = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
        rows.append(Row(name, "gradients", worst, 1e-5))
    hinge_inputs = [
        jnp.asarray(recorded["hardneg/preds"], jnp.float32),
        jnp.asarray(recorded["hardneg/mask"] > 0),
        jnp.asarray(recorded["hardneg/labels_fail1"] < 0.5),
    ]
    for key, margin, beta in (("soft_beta50_a0.1", 0.1, 50.0), ("hard_a0.2", 0.2, None)):
        value = hard_negative_hinge(*hinge_inputs, margin=margin, beta=beta)
        rows.append(compare("hard negatives", key, value, recorded[f"hardneg/{key}"], 1e-6))
    return rows


def trajectories(folder: Path) -> list[Row]:
    """Thirty epochs of training on one batch, for each optimiser."""
    episodes, _ = recorded_batch(folder)
    recorded = read_npz(folder / "train_traj.npz")
    rows = []
    for name, config in RUNS.items():
        head = recorded_head(recorded, f"{name}/w0/")
        head, history = train(head, episodes, config, jax.random.key(0))
        wanted = recorded_head(recorded, f"{name}/w30/")
        pairs = zip(jax.tree.leaves(head), jax.tree.leaves(wanted), strict=True)
        worst = max(float(abs(a - b).max()) for a, b in pairs)
        scores = jnp.where(episodes.mask, head.sequence(jnp.asarray(episodes.features)), 0.0)
        rows += [
            compare(name, "learning rate", history.learning_rate, recorded[f"{name}/lr"], 1e-7),
            compare(name, "loss", history.loss, recorded[f"{name}/total_loss"], 1e-5),
            Row(name, "weights after 30 epochs", worst, 2e-4),
            compare(name, "scores", scores, recorded[f"{name}/scores30"] * episodes.mask, 1e-5),
        ]
    return rows


GROUPS = {
    ("batch.npz", "forward_losses.npz"): forward,
    ("batch.npz", "train_traj.npz"): trajectories,
}
