"""The training of the board's PyTorch policies: resumable, averaged, saved without a pickle.

A policy brings the loss of its batches; everything else is the same for all. The training state is
kept in `<out>.training`. `board_training` is the same for policies in JAX.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from tqdm import tqdm

from experiments.train.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class TorchConfig(Schedule):
    """Of a policy in PyTorch.

    Attributes:
        threads: of PyTorch.
    """

    threads: int = 1

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.03 + 0.97 * (1 + math.cos(math.pi * done)) / 2)


class TorchTraining(abc.ABC):
    """Weights, their average, and the optimiser.

    Attributes:
        step: optimiser steps done.
        weights, average: by name.
    """

    def __init__(self, config: TorchConfig, weights: Mapping[str, Parameter]):
        self.config, self.step, self.weights = config, 0, dict(weights)
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

    @abc.abstractmethod
    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Of a batch that `rng` draws: the total, and the parts to log."""

    def update(self) -> dict[str, float]:
        """One optimiser step; the parts of its loss."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(self.step)
        total, parts = self.loss(np.random.default_rng((config.seed, self.step)))
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.weights.items():
            self.average[name].lerp_(value.detach(), 1 - decay)
        self.step += 1
        return {name: float(value) for name, value in parts.items()}

    def run(
        self,
        *,
        minutes: float = math.inf,
        eval_every: int = 0,
        evaluate: Callable[[], dict[str, float]] | None = None,
    ) -> bool:
        """Trains to the last step, or for so many minutes; goes on from a saved state.

        Args:
            minutes: after which it stops, with a checkpoint.
            eval_every: steps between evaluations, and one at the end; 0 evaluates nothing.
            evaluate: what is logged then, such as the success rate.

        Returns:
            Whether all steps are done.
        """
        config, started = self.config, time.monotonic()
        window: list[dict[str, float]] = []
        config.folder.mkdir(parents=True, exist_ok=True)
        state, cpu = config.folder / "state.safetensors", time.process_time()
        if state.exists():
            self.load(state)
        bar = tqdm(total=config.steps, initial=self.step, unit="step", smoothing=0.05)
        with config.logging() as log:
            while self.step < config.steps and time.monotonic() - started < 60 * minutes:
                window.append(self.update())
                bar.update()
                if len(window) == 50:
                    mean = {k: float(np.mean([p[k] for p in window])) for k in window[0]}
                    bar.set_postfix({k: f"{v:.3g}" for k, v in mean.items()})
                    log({"step": self.step, **mean, "cpu_s": time.process_time() - cpu})
                    window.clear()
                if self.step % config.checkpoint_every == 0:
                    self.save(state)
                last = self.step == config.steps
                if evaluate is not None and eval_every and (self.step % eval_every == 0 or last):
                    found = evaluate()
                    log({"step": self.step, **found})
                    bar.write(f"step {self.step}: {found}")
        self.save(state)
        done = self.step == config.steps
        said = "done" if done else "run the same command again"
        bar.write(f"step {self.step} of {config.steps}: {said}")
        return done

    def save(self, file: Path) -> None:
        """Writes the training state."""
        partial = file.with_suffix(".partial")
        save_file(self._state(), partial)
        partial.rename(file)

    def load(self, file: Path) -> None:
        """Goes on from a saved state."""
        saved = load_file(file)
        for name, value in self._state().items():
            value.copy_(saved[name])
        self.step = int(saved["step"])

    def _state(self) -> dict[str, Tensor]:
        tensors = {"step": torch.tensor(self.step)}
        for name, value in self.weights.items():
            tensors[f"weight/{name}"] = value.detach()
            tensors[f"average/{name}"] = self.average[name]
            for key, moment in self.optimizer.state[value].items():
                tensors[f"{key}/{name}"] = moment
        return tensors
