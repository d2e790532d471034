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
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

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
from experiments.train.torch_training import TorchConfig, TorchTraining
from interop.openvla.decoders import ChunkDecoder, TokenDecoder
from interop.openvla.policy import OpenVLAPolicy
from interop.openvla.reader import Reader
from mistjax.compilation import enable_cache
from mistjax.policies import BOARD


@dataclasses.dataclass(frozen=True)
class Config(TorchConfig):
    """What is trained, and on what; the rest is `TorchConfig`'s.

    Attributes:
        demos: folders of demonstrations.
        start: checkpoint to start from; its statistics are kept. None starts at random.
        decoding: `oft` or `token`.
        loss: weights of the co-training terms.
        eval_every: steps between evaluations in the simulator.
        eval_episodes: episodes of each of those.
    """

    out: Path = Path("checkpoints/board_openvla")
    steps: int = 4500
    learning_rate: float = 1.5e-3
    warmup: int = 200
    ema: float = 0.995
    demos: tuple[Path, ...] = (
        Path("data/board_demos"),
        Path("data/board_dagger"),
        Path("data/board_starts"),
    )
    start: Path | None = None
    decoding: Decoding = "oft"
    loss: LossWeights = dataclasses.field(default_factory=LossWeights)
    eval_every: int = 1500
    eval_episodes: int = 40


class Training(TorchTraining):
    """Of an OpenVLA."""

    def __init__(self, config: Config):
        torch.manual_seed(config.seed)
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
        self.weighed = config.loss
        super().__init__(config, dict(self.net.named_parameters()))

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TorchTraining.loss`."""
        batch = self.data.batch(rng, self.config.batch_size)
        return board_loss(self.net, batch, self.weighed)

    def policy(self) -> OpenVLAPolicy:
        """The policy with averaged weights."""
        sizes = self.net.model.config
        net = BoardOpenVLA(sizes).requires_grad_(False).eval()
        net.load_state_dict(self.average)
        cameras = list(BOARD.cameras.items())[: None if net.parts else 1]
        reader = Reader(self.tokenizer, dict(cameras), (sizes.resize,), sizes.prompt)
        decoder = ChunkDecoder(net.model, net.parts) if net.parts else TokenDecoder(net.model, 4)
        return OpenVLAPolicy(net.model, decoder, reader, BOARD, name=self.config.out.name)


def main(config: Config) -> OpenVLAPolicy:
    """Trains, evaluates and saves; returns the policy with averaged weights."""
    torch.set_num_threads(config.threads)
    training, episodes = Training(config), config.eval_episodes
    training.run(
        eval_every=config.eval_every,
        evaluate=lambda: {"success": evaluate(training.policy(), episodes), "n": episodes},
    )
    trained = training.policy()
    trained.save(config.out, shard_bytes=2_000_000)
    return trained


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
