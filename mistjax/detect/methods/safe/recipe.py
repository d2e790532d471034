"""How a failure head is trained: the options, the update rule and its learning rate.

Source: SAFE (arXiv 2506.09937), section 5 and its released training options.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array

from mistjax.detect.methods.safe.losses import LossConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a head is trained.

    Attributes:
        epochs: passes over the training set.
        batch_size: episodes per step; the last batch of an epoch is smaller.
        group: on a CPU, episodes of a step whose gradient is taken at a time, see
            `loss_and_gradient`; other devices take them together, as None does.
        learning_rate: 1e-3 for SAFE-MLP, 3e-4 for SAFE-LSTM in the source.
        optimizer: update rule.
        weight_decay: decoupled decay (adamw only).
        momentum: of sgd.
        warmup_epochs: linear ramp to the learning rate.
        decay_every: epochs between multiplications by `decay_rate`, counted after the ramp.
        decay_rate: 1 keeps the rate constant.
        clip_norm: global gradient norm limit; None is no limit.
        loss: what is minimised.
        select: keep the last epoch, or the best one on validation episodes.
        validate_every: epochs between validations.
    """

    epochs: int = 1000
    batch_size: int = 512
    group: int | None = None
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 1e-2
    momentum: float = 0.9
    warmup_epochs: int = 0
    decay_every: int = 300
    decay_rate: float = 1.0
    clip_norm: float | None = None
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    select: Literal["last", "best"] = "last"
    validate_every: int = 25


def update_rule(config: TrainConfig) -> optax.GradientTransformation:
    """Updates for learning rate 1; the rate is applied outside, as an argument."""
    rule = {
        "adam": lambda: optax.adam(1.0),
        "adamw": lambda: optax.adamw(1.0, weight_decay=config.weight_decay),
        "sgd": lambda: optax.sgd(1.0, momentum=config.momentum),
    }[config.optimizer]()
    if config.clip_norm is None:
        return rule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def learning_rate(config: TrainConfig, base: Array, epoch: Array) -> Array:
    """`base`, ramped up and decayed, at an epoch."""
    epoch = epoch.astype(base.dtype)
    ramp = (epoch + 1) / max(config.warmup_epochs, 1)
    steps = (epoch - config.warmup_epochs) // config.decay_every
    return base * jnp.where(
        epoch < config.warmup_epochs, ramp, config.decay_rate ** jnp.maximum(steps, 0)
    )
