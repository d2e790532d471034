"""Trains the shipped board policy: a tiny pi0 that learns to place Go stones from demonstrations.

1. `python -m mistjax.envs.board.demos --episodes 2400 --out data/board_demos`
2. `python -m experiments.train.board_pi0 --out runs/board_cloned`
3. `python -m experiments.train.board_dagger --policy runs/board_cloned --out data/board_dagger`
4. `python -m experiments.train.board_pi0 --demos data/board_demos data/board_dagger --start
   runs/board_cloned --out checkpoints/board_pi0`

Cloning alone (2) leaves a policy that small errors bring where no demonstration has been; expert
labels in its own states (3) and a second training (4) repair that. Interrupt it at will: the same
command goes on from the last checkpoint. About 20 minutes a training on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import tyro

from experiments.train.board_data import BoardData, board_tokenizer
from experiments.train.board_model import board_config, board_loss, init_layout_head
from experiments.train.board_training import Training, train
from experiments.train.board_training import evaluate as evaluate
from mistjax.compilation import enable_cache
from mistjax.models import pi0
from mistjax.policies import BOARD, PiPolicy


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """What is trained, on what, and where it goes.

    Attributes:
        demos: folders of demonstrations.
        start: checkpoint to start from; its statistics are kept. None starts at random.
        flow_samples: noise draws of each example, sharing one prefix.
        caption_weight: weight of the next-token loss on motion captions.
    """

    demos: tuple[Path, ...] = (Path("data/board_demos"),)
    start: Path | None = None
    out: Path = Path("checkpoints/board_pi0")
    flow_samples: int = 4
    caption_weight: float = 0.1


def main(config: Config) -> PiPolicy:
    """Trains, evaluates and saves; returns the policy with averaged weights."""
    tokenizer = board_tokenizer()
    model = board_config(tokenizer.vocab_size)
    start = None if config.start is None else PiPolicy.load(config.start, BOARD)
    data = BoardData.load(config.demos, tokenizer, model, start and start.norm_stats)
    variables = pi0.init(model, jax.random.key(config.seed)) if start is None else start.variables
    loss = functools.partial(
        board_loss,
        config=model,
        flow_samples=config.flow_samples,
        layout_weight=config.layout_weight,
        caption_weight=config.caption_weight,
    )

    def policy(params) -> PiPolicy:
        variables = {"params": params}
        return PiPolicy(model, variables, tokenizer, data.norm_stats, BOARD, config.out.name)

    params = {"model": variables["params"], "layout_head": init_layout_head(model)}
    return train(config, params, loss, data.batch, policy)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
