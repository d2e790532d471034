"""Trains the shipped board policy: a tiny pi0 that learns to place Go stones from demonstrations.

1. `python -m mistjax.envs.board.demos --episodes 2400 --out data/board_demos`
2. `python -m experiments.train.board_pi0 --out runs/board_cloned`
3. `python -m experiments.train.board_dagger --policy runs/board_cloned --out data/board_dagger`
4. `python -m experiments.train.board_pi0 --demos data/board_demos data/board_dagger --start
   runs/board_cloned --out checkpoints/board_pi0`

A policy that can do without one of its cameras, `checkpoints/board_pi0_dropout`, goes on from the
shipped one, on 1,200 demonstrations (1) and labels in its own states (3, with `--policy
checkpoints/board_pi0 --first-seed 320000 --shards 15`):

    python -m experiments.train.board_pi0 --demos data/board_demos data/board_dagger --start
       checkpoints/board_pi0 --camera-dropout 0.25 --steps 3600 --batch-size 32 --learning-rate 5e-4
       --warmup 50 --ema 0.99 --out checkpoints/board_pi0_dropout

Cloning alone (2) leaves a policy that small errors bring where no demonstration has been; expert
labels in its own states (3) and a second training (4) repair that. Interrupt it at will: the same
command goes on from the last checkpoint. About 20 minutes a training on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.train.board_data import BoardData, board_tokenizer
from experiments.train.board_model import Batch, board_config, board_loss, init_layout_head
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
        fresh_expert: the action expert alone is trained, from random weights, on the vision tower
            and the VLM of `start`.
        flow_samples: noise draws of each example, sharing one prefix.
        caption_weight: weight of the next-token loss on motion captions.
        camera_dropout: chance of each camera to be the one that an example does without.

    Raises:
        ValueError: a chance below 0, or above a half; a fresh expert without a start.
    """

    demos: tuple[Path, ...] = (Path("data/board_demos"),)
    start: Path | None = None
    fresh_expert: bool = False
    out: Path = Path("checkpoints/board_pi0")
    flow_samples: int = 4
    caption_weight: float = 0.1
    camera_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.camera_dropout <= 0.5:
            raise ValueError(
                f"camera_dropout is {self.camera_dropout}: expected the chance of each of the two "
                "cameras, from 0 to 0.5."
            )
        if self.fresh_expert and self.start is None:
            raise ValueError("a fresh expert needs a policy to stand on: give --start.")


def without_cameras(batch: Batch, chance: float, rng: np.random.Generator) -> Batch:
    """The batch with each camera masked in a share `chance` of the examples, at most one of them in
    any.
    """
    masks = dict(batch.obs.image_masks)
    left_out = np.floor(rng.random(batch.obs.batch_size) / chance) if chance else None
    for number, name in enumerate(masks if chance else ()):
        masks[name] = np.asarray(masks[name]) & (left_out != number)
    return dataclasses.replace(batch, obs=dataclasses.replace(batch.obs, image_masks=masks))


def of_expert(path: tuple[str, ...]) -> bool:
    """Whether a parameter is the action expert's, or a projection into or out of it."""
    inside = path[:2] == ("PaliGemma", "llm") and any(name.endswith("_1") for name in path)
    return inside or path[0] != "PaliGemma"


def main(config: Config) -> PiPolicy:
    """Trains, evaluates and saves; returns the policy with averaged weights."""
    tokenizer = board_tokenizer()
    model = board_config(tokenizer.vocab_size)
    start = None if config.start is None else PiPolicy.load(config.start, BOARD)
    data = BoardData.load(config.demos, tokenizer, model, start and start.norm_stats)
    fresh = pi0.init(model, jax.random.key(config.seed))
    known = fresh if start is None else start.variables
    trained, kept = dict(flatten_dict(known["params"])), {}
    if config.fresh_expert:
        kept = {path: leaf for path, leaf in trained.items() if not of_expert(path)}
        trained = {p: leaf for p, leaf in flatten_dict(fresh["params"]).items() if p not in kept}

    def whole(params) -> dict[str, Any]:
        return unflatten_dict({**kept, **flatten_dict(params)})

    whole_loss = functools.partial(
        board_loss,
        config=model,
        flow_samples=config.flow_samples,
        layout_weight=config.layout_weight,
        caption_weight=config.caption_weight,
    )

    def loss(params, batch: Batch, key):
        return whole_loss({**params, "model": whole(params["model"])}, batch, key)

    def policy(params) -> PiPolicy:
        variables = {"params": whole(params)}
        return PiPolicy(model, variables, tokenizer, data.norm_stats, BOARD, config.out.name)

    def batch(rng: np.random.Generator, size: int) -> Batch:
        return without_cameras(data.batch(rng, size), config.camera_dropout, rng)

    params = {"model": unflatten_dict(trained), "layout_head": init_layout_head(model)}
    return train(config, params, loss, batch, policy)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
