"""Trains the board's tiny pi0-FAST on the demonstrations of the other board policies.

1. Demonstrations, labels in a policy's own states and first frames: see `train_board_policy`.
2. `python -m experiments.train_board_fast`

Interrupt it at will: the same command goes on from the last checkpoint. Source: FAST,
arXiv 2501.09747.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import tyro

from experiments.board_fast import FastData, fast_config, fast_loss, initial_params
from experiments.board_model import init_layout_head
from experiments.board_training import Training, train
from mistjax.compilation import enable_cache
from mistjax.models import fast
from mistjax.policies import BOARD, BOARD_FAST, FastPolicy, PiPolicy


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """What is trained, on what, and where it goes.

    Attributes:
        demos: folders of demonstrations.
        start: a board pi0 whose vision tower, VLM and words to start from; the tower then stays as
            it is. None starts at random.
    """

    demos: tuple[Path, ...] = (
        Path("data/board_demos"),
        Path("data/board_dagger"),
        Path("data/board_starts"),
    )
    start: Path | None = Path("checkpoints/board_pi0")
    out: Path = Path("checkpoints/board_fast")
    steps: int = 5000
    batch_size: int = 32
    learning_rate: float = 1e-3
    eval_every: int = 2500


def main(config: Config) -> FastPolicy:
    """Trains, evaluates and saves; returns the policy with averaged weights."""
    data = FastData.load(config.demos)
    print(data.describe())
    tokenizer = data.tokenizer
    model = fast_config(tokenizer.vocab_size)
    if config.start is None:
        params = fast.init(model, jax.random.key(config.seed))["params"]
    else:
        start = PiPolicy.load(config.start, BOARD)
        params = initial_params(model, tokenizer.prompts, start, config.seed)

    def policy(params) -> FastPolicy:
        return FastPolicy(
            config=model,
            variables={"params": params},
            tokenizer=tokenizer,
            norm_stats=data.data.norm_stats,
            preset=BOARD_FAST,
            name=config.out.name,
        )

    loss = functools.partial(
        fast_loss,
        config=model,
        layout_weight=config.layout_weight,
        train_vision=config.start is None,
    )
    params = {"model": params, "layout_head": init_layout_head(model)}
    return train(config, params, loss, data.batch, policy)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
