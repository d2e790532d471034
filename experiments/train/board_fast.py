"""Trains the board's tiny pi0-FAST on the demonstrations of the other board policies.

1. Demonstrations, labels in a policy's own states and first frames: see `train.board_pi0`, and
   `train.board_openvla` for data/board_dagger_openvla.
2. `python -m experiments.train.board_fast --out runs/board_fast_cloned`
3. `python -m experiments.train.board_dagger --policy runs/board_fast_cloned --first-seed 800000
   --out data/board_dagger_fast`
4. `python -m experiments.train.board_fast --start runs/board_fast_cloned --demos data/board_demos
   data/board_dagger data/board_starts data/board_dagger_openvla data/board_dagger_fast --steps
   2600`

Interrupt it at will: the same command goes on from the last checkpoint. Source: FAST,
arXiv 2501.09747.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import tyro

from experiments.train.board_fast_model import (
    FastData,
    fast_config,
    fast_loss,
    initial_params,
    renumbered,
)
from experiments.train.board_model import init_layout_head
from experiments.train.board_training import Training, train
from mistjax.compilation import enable_cache
from mistjax.models import fast
from mistjax.policies import BOARD_FAST, FastPolicy, PiPolicy
from mistjax.policies.load import load_policy


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """What is trained, on what, and where it goes.

    Attributes:
        demos: folders of demonstrations.
        start: a board pi0 whose vision tower, VLM and words to start from, or a board pi0-FAST to
            train on, whose tokens and statistics are kept; the tower then stays as it is. None
            starts at random.
        renumber: give the state of such a pi0-FAST other numbers, see `shared_numbers`.
    """

    demos: tuple[Path, ...] = (
        Path("data/board_demos"),
        Path("data/board_dagger"),
        Path("data/board_starts"),
    )
    start: Path | None = Path("checkpoints/board_pi0")
    renumber: bool = False
    out: Path = Path("checkpoints/board_fast")
    steps: int = 5000
    batch_size: int = 32
    learning_rate: float = 1e-3
    eval_every: int = 2500


def main(config: Config) -> FastPolicy:
    """Trains, evaluates and saves; returns the policy with averaged weights."""
    start = None if config.start is None else load_policy(config.start)
    trained = start if isinstance(start, FastPolicy) else None
    data = FastData.load(config.demos, trained, config.renumber)
    print(data.describe())
    tokenizer = data.tokenizer
    model = fast_config(tokenizer.vocab_size)
    if trained is not None:
        params = trained.variables["params"]
        params = renumbered(params, tokenizer.prompts) if config.renumber else params
    elif start is not None:
        assert isinstance(start, PiPolicy)
        params = initial_params(model, tokenizer.prompts, start, config.seed)
    else:
        params = fast.init(model, jax.random.key(config.seed))["params"]

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
    params = {"model": params, "layout_head": init_layout_head(model, size=9)}
    return train(config, params, loss, data.batch, policy)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
