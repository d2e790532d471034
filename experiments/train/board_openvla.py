"""Trains the board's tiny OpenVLA-OFT on the demonstrations of the other board policies.

1. Demonstrations, labels in pi0's states and first frames: see `train.board_pi0`.
2. `python -m experiments.train.board_openvla --out runs/board_openvla_cloned`
3. `python -m experiments.train.board_dagger --policy runs/board_openvla_cloned --first-seed 700000
   --out data/board_dagger_openvla`
4. `python -m experiments.train.board_openvla --start runs/board_openvla_cloned --demos
   data/board_demos data/board_dagger data/board_starts data/board_dagger_openvla --steps 9000`

Interrupt it at will: the same command goes on from the last checkpoint. 0.2 CPU seconds a step.
`--decoding token` trains the original OpenVLA (one camera, no state, one action an inference) on
the same data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from experiments.train.board_openvla_data import OpenVLAData
from experiments.train.board_openvla_model import (
    BoardOpenVLA,
    Decoding,
    LossWeights,
    board_loss,
    openvla_config,
    openvla_tokenizer,
)
from experiments.train.board_training import evaluate
from interop.openvla.decoders import ChunkDecoder, TokenDecoder
from interop.openvla.policy import OpenVLAPolicy
from interop.openvla.reader import Reader
from mistjax.compilation import enable_cache
from mistjax.policies import BOARD


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and where it goes.

    Attributes:
        demos: folders of demonstrations.
        start: checkpoint to start from; its statistics are kept. None starts at random.
        out: checkpoint folder to write; its training state is kept in `<out>.training`.
        decoding: `oft` or `token`.
        steps: optimiser steps.
        batch_size: examples a step.
        learning_rate: peak; linear warm-up, then cosine down to 3%.
        warmup: warm-up steps.
        ema: decay of the averaged weights, which are the ones that ship.
        weight_decay: of AdamW.
        loss: weights of the co-training terms.
        checkpoint_every: steps between checkpoints of the training state.
        eval_every: steps between evaluations in the simulator.
        eval_episodes: episodes of each of those.
        threads: of PyTorch.
        seed: of initialisation and data order.
    """

    demos: tuple[Path, ...] = (
        Path("data/board_demos"),
        Path("data/board_dagger"),
        Path("data/board_starts"),
    )
    start: Path | None = None
    out: Path = Path("checkpoints/board_openvla")
    decoding: Decoding = "oft"
    steps: int = 4500
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    warmup: int = 200
    ema: float = 0.995
    weight_decay: float = 1e-4
    loss: LossWeights = dataclasses.field(default_factory=LossWeights)
    checkpoint_every: int = 250
    eval_every: int = 1500
    eval_episodes: int = 40
    threads: int = 1
    seed: int = 0


class Training:
    """Weights, their average, and the optimiser; saved without a pickle."""

    def __init__(self, config: Config):
        torch.manual_seed(config.seed)
        self.config, self.step = config, 0
        self.tokenizer = openvla_tokenizer()
        start = None if config.start is None else OpenVLAPolicy.load(config.start, BOARD)
        stats = None if start is None else start.model.config.norm_stats
        self.data = OpenVLAData.load(config.demos, self.tokenizer, stats)
        sizes = openvla_config(self.tokenizer, config.decoding)
        self.net = BoardOpenVLA(dataclasses.replace(sizes, norm_stats=self.data.norm_stats))
        if start is not None:
            own = [self.net.model, *(p for p in (self.net.head, self.net.proprio) if p is not None)]
            given = [start.model, *start.decoder.extra_modules]
            for module, other in zip(own, given, strict=True):
                module.load_state_dict(other.state_dict())
        self.weights = dict(self.net.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(),
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )
        for value in self.weights.values():  # so that a loaded state finds its place
            value.grad = torch.zeros_like(value)
        self.optimizer.step()

    def update(self) -> dict[str, Tensor]:
        """One optimiser step."""
        config = self.config
        batch = self.data.batch(np.random.default_rng((config.seed, self.step)), config.batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        loss, parts = board_loss(self.net, batch, config.loss)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.weights.items():
            self.average[name].lerp_(value.detach(), 1 - decay)
        self.step += 1
        return parts

    def policy(self) -> OpenVLAPolicy:
        """The policy with averaged weights."""
        sizes = self.net.model.config
        net = BoardOpenVLA(sizes).requires_grad_(False).eval()
        net.load_state_dict(self.average)
        cameras = list(BOARD.cameras.items())[: None if net.parts else 1]
        reader = Reader(self.tokenizer, dict(cameras), (sizes.resize,), sizes.prompt)
        decoder = ChunkDecoder(net.model, net.parts) if net.parts else TokenDecoder(net.model, 4)
        return OpenVLAPolicy(net.model, decoder, reader, BOARD, name=self.config.out.name)

    def _state(self) -> dict[str, Tensor]:
        tensors = {"step": torch.tensor(self.step)}
        for name, value in self.weights.items():
            tensors[f"weight/{name}"] = value.detach()
            tensors[f"average/{name}"] = self.average[name]
            for key, moment in self.optimizer.state[value].items():
                tensors[f"{key}/{name}"] = moment
        return tensors

    def save(self, file: Path) -> None:
        partial = file.with_suffix(".partial")
        save_file(self._state(), partial)
        partial.rename(file)

    def load(self, file: Path) -> None:
        """Goes on from a saved state."""
        saved = load_file(file)
        for name, value in self._state().items():
            value.copy_(saved[name])
        self.step = int(saved["step"])


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then cosine down to 3%."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.03 + 0.97 * (1 + math.cos(math.pi * done)) / 2)


def main(config: Config) -> Any:
    """Trains, evaluates and saves; returns the policy with averaged weights."""
    torch.set_num_threads(config.threads)
    training = Training(config)
    folder = config.out.with_name(config.out.name + ".training")
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.safetensors"
    if state.exists():
        training.load(state)
    bar = tqdm(total=config.steps, initial=training.step, unit="step", smoothing=0.05)
    window: list[dict] = []
    started = time.process_time()
    while training.step < config.steps:
        window.append(training.update())
        bar.update()
        if len(window) == 50:
            mean = {k: float(np.mean([p[k] for p in window])) for k in window[0]}
            bar.set_postfix({k: f"{v:.3g}" for k, v in mean.items()})
            cpu = time.process_time() - started
            _log(folder, {"step": training.step, **mean, "cpu_s": cpu})
            window.clear()
        last = training.step == config.steps
        if training.step % config.checkpoint_every == 0 or last:
            training.save(state)
        if training.step % config.eval_every == 0 or last:
            success = evaluate(training.policy(), config.eval_episodes)
            _log(folder, {"step": training.step, "success": success, "n": config.eval_episodes})
            bar.write(f"step {training.step}: success {success:.0%} of {config.eval_episodes}")
    trained = training.policy()
    trained.save(config.out, shard_bytes=2_000_000)
    return trained


def _log(folder: Path, record: dict) -> None:
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
