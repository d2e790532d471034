"""Trains a small SmolVLA, in LeRobot's own modules, to place Go stones on the board.

As SmolVLA starts from a trained VLM, this one starts from that of the board's pi0.

1. `python -m experiments.train.board_lerobot_data --out data/board_lerobot`
2. `python -m experiments.train.board_smolvla --minutes 9`, again and again until it says that it is
   done: it goes on from the last checkpoint.

Runs in the environment of `make test-lerobot`. 0.13 CPU seconds a step.
"""

from __future__ import annotations

import interop.lerobot  # noqa: F401 (goes before lerobot and transformers, see there)

# isort: split
import dataclasses
import functools
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import tyro
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from experiments.train.board_data import board_tokenizer
from experiments.train.board_smolvla_data import CAMERAS, LeRobotFrames
from experiments.train.board_smolvla_model import (
    HORIZON,
    PROMPT_LEN,
    smolvla_config,
    smolvla_loss,
    write_backbone,
)
from experiments.train.board_smolvla_start import start_from
from mistjax.demo import SHIPPED
from mistjax.policies import BOARD, PiPolicy

BACKBONE = "backbone"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and where it goes.

    Attributes:
        data: folder of LeRobotDatasets.
        start: a pi0 of the same sizes; its statistics are kept.
        out: checkpoint folder to write; its training state is kept in `<out>.training`.
        steps: optimiser steps.
        batch_size: examples a step.
        flow_samples: noise draws of each example, sharing one prefix.
        learning_rate: peak; linear warm-up, then cosine down to 3%.
        warmup: warm-up steps.
        ema: decay of the averaged weights, which are the ones that ship.
        weight_decay: of AdamW.
        checkpoint_every: steps between checkpoints of the training state.
        minutes: stop after so many, with a checkpoint.
        threads: of PyTorch.
        seed: of initialisation, data order and noise.
    """

    data: Path = Path("data/board_lerobot")
    start: Path = SHIPPED / "board_pi0"
    out: Path = Path("checkpoints/board_smolvla")
    steps: int = 3000
    batch_size: int = 32
    flow_samples: int = 2
    learning_rate: float = 1e-3
    warmup: int = 50
    ema: float = 0.99
    weight_decay: float = 1e-4
    checkpoint_every: int = 250
    minutes: float = math.inf
    threads: int = 1
    seed: int = 0


class Training:
    """Weights, their average, and the optimiser; saved without a pickle."""

    def __init__(self, config: Config, folder: Path):
        torch.manual_seed(config.seed)
        self.config, self.step = config, 0
        write_backbone(folder / BACKBONE, board_pieces())
        datasets = sorted(path for path in config.data.iterdir() if path.is_dir())
        self.data = LeRobotFrames.load(datasets, HORIZON, folder / "frames.npy")
        start = PiPolicy.load(config.start, BOARD)
        self.stats = statistics(start)
        self.policy = SmolVLAPolicy(smolvla_config(folder / BACKBONE, CAMERAS)).eval()
        start_from(self.policy.model, start)
        tokenizer = AutoTokenizer.from_pretrained(folder / BACKBONE)
        self.encode = functools.cache(
            lambda text: np.array(
                tokenizer(f"{text}\n", padding="max_length", max_length=PROMPT_LEN)["input_ids"]
            )
        )
        self.weights = {n: p for n, p in self.policy.named_parameters() if p.requires_grad}
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

    def update(self) -> float:
        """One optimiser step."""
        config = self.config
        rng = np.random.default_rng((config.seed, self.step))
        batch = self._normalised(self.data.batch(rng, config.batch_size, self.encode))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        loss = smolvla_loss(self.policy, batch, config.flow_samples, noise)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.weights.items():
            self.average[name].lerp_(value.detach(), 1 - decay)
        self.step += 1
        return loss.item()

    def _normalised(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        longest = int((batch["words"] != 0).sum(dim=1).amax())
        batch["words"] = batch["words"][:, :longest]  # as LeRobot pads
        batch["images"] = batch["images"].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        for key, name in (("state", "observation.state"), ("actions", "action")):
            stats = self.stats[name]
            batch[key] = (batch[key] - stats["mean"]) / stats["std"]
        return batch

    def export(self) -> None:
        """Writes the policy with averaged weights as a folder of LeRobot's, with its backbone."""
        out, policy = self.config.out, self.policy
        out.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self._state_folder / BACKBONE, out / BACKBONE, dirs_exist_ok=True)
        now = {name: value.detach().clone() for name, value in self.weights.items()}
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(self.average[name])
            policy.config.vlm_model_name = str(out / BACKBONE)
            steps = make_smolvla_pre_post_processors(policy.config, self.stats)
            policy.config.vlm_model_name = steps[0].steps[3].tokenizer_name = BACKBONE
            policy.save_pretrained(out)
            for pipeline in steps:
                pipeline.save_pretrained(out)
            for name, value in self.weights.items():
                value.copy_(now[name])

    @property
    def _state_folder(self) -> Path:
        return state_folder(self.config)

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


def statistics(policy: PiPolicy) -> dict[str, dict[str, Tensor]]:
    """A pi0's statistics as LeRobot's normalisers read them."""
    names = {"observation.state": "state", "action": "actions"}
    stats = {name: policy.norm_stats[key] for name, key in names.items()}
    return {
        name: {"mean": torch.tensor(s.mean), "std": torch.tensor(s.std)}
        for name, s in stats.items()
    }


def board_pieces() -> list[str]:
    """The board's words as pieces, the four special ones first."""
    tokenizer = board_tokenizer()
    return [tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size)]


def state_folder(config: Config) -> Path:
    return config.out.with_name(config.out.name + ".training")


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then cosine down to 3%."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.03 + 0.97 * (1 + math.cos(math.pi * done)) / 2)


def main(config: Config) -> None:
    """Trains and saves."""
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    folder = state_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(config, folder)
    state = folder / "state.safetensors"
    if state.exists():
        training.load(state)
    bar = tqdm(total=config.steps, initial=training.step, unit="step", smoothing=0.05)
    window: list[float] = []
    cpu = time.process_time()
    while training.step < config.steps and time.monotonic() - started < 60 * config.minutes:
        window.append(training.update())
        bar.update()
        if len(window) == 50:
            mean = {"flow": float(np.mean(window))}
            bar.set_postfix(mean)
            spent = time.process_time() - cpu
            with (folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": training.step, **mean, "cpu_s": spent}) + "\n")
            window.clear()
        if training.step % config.checkpoint_every == 0:
            training.save(state)
    training.save(state)
    training.export()
    done = "done" if training.step == config.steps else "run the same command again"
    bar.write(f"step {training.step} of {config.steps}: {done}")


if __name__ == "__main__":
    main(tyro.cli(Config))
