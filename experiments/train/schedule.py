"""How long a board policy is trained, how fast, and where it goes; in JAX and in PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mistjax.tracking import Track, Trackers


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What all trainings have; their defaults are those of a policy in PyTorch.

    Attributes:
        out: checkpoint folder to write; its training state is kept in `<out>.training`.
        steps: optimiser steps.
        batch_size: examples a step.
        learning_rate: peak; linear warm-up, then cosine down to 3%.
        warmup: warm-up steps.
        ema: decay of the averaged weights, which are the ones that ship.
        weight_decay: of AdamW.
        checkpoint_every: steps between checkpoints of the training state.
        seed: of initialisation, data order and noise.
        trackers: where the numbers of `log.jsonl` go too.
    """

    out: Path
    steps: int = 3000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 50
    ema: float = 0.99
    weight_decay: float = 1e-4
    checkpoint_every: int = 250
    seed: int = 0
    trackers: Track = dataclasses.field(default_factory=Trackers)

    @property
    def folder(self) -> Path:
        """Where the training state is kept."""
        return self.out.with_name(self.out.name + ".training")

    @contextlib.contextmanager
    def logging(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """While the block lasts: records with their `step`, as lines of `log.jsonl` beside the
        training state, and to the trackers.
        """
        settings = {k: v for k, v in dataclasses.asdict(self).items() if isinstance(v, int | float)}
        with self.trackers.open(self.out.name, settings) as track:

            def log(record: dict[str, Any]) -> None:
                with (self.folder / "log.jsonl").open("a") as file:
                    file.write(json.dumps(record) + "\n")
                track({k: v for k, v in record.items() if k != "step"}, record["step"])

            yield log
