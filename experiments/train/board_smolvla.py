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
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import tyro
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from torch import Tensor
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
from experiments.train.torch_training import TorchConfig, TorchTraining
from mistjax.demo import SHIPPED
from mistjax.policies import BOARD, PiPolicy

BACKBONE = "backbone"


@dataclasses.dataclass(frozen=True)
class Config(TorchConfig):
    """What is trained, and on what; the rest is `TorchConfig`'s.

    Attributes:
        data: folder of LeRobotDatasets.
        start: a pi0 of the same sizes; its statistics are kept.
        flow_samples: noise draws of each example, sharing one prefix.
        minutes: stop after so many, with a checkpoint.
    """

    out: Path = Path("checkpoints/board_smolvla")
    data: Path = Path("data/board_lerobot")
    start: Path = SHIPPED / "board_pi0"
    flow_samples: int = 2
    minutes: float = math.inf


class Training(TorchTraining):
    """Of a SmolVLA."""

    def __init__(self, config: Config):
        torch.manual_seed(config.seed)
        config.folder.mkdir(parents=True, exist_ok=True)
        self.backbone = config.folder / BACKBONE
        write_backbone(self.backbone, board_pieces())
        datasets = sorted(path for path in config.data.iterdir() if path.is_dir())
        self.data = LeRobotFrames.load(datasets, HORIZON, config.folder / "frames.npy")
        start = PiPolicy.load(config.start, BOARD)
        self.stats, self.flow_samples = statistics(start), config.flow_samples
        self.policy = SmolVLAPolicy(smolvla_config(self.backbone, CAMERAS)).eval()
        start_from(self.policy.model, start)
        tokenizer = AutoTokenizer.from_pretrained(self.backbone)
        self.encode = functools.cache(
            lambda text: np.array(
                tokenizer(f"{text}\n", padding="max_length", max_length=PROMPT_LEN)["input_ids"]
            )
        )
        trained = {n: p for n, p in self.policy.named_parameters() if p.requires_grad}
        super().__init__(config, trained)

    def loss(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TorchTraining.loss`."""
        batch = self._normalised(self.data.batch(rng, self.config.batch_size, self.encode))
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        flow = smolvla_loss(self.policy, batch, self.flow_samples, noise)
        return flow, {"flow": flow}

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
        shutil.copytree(self.backbone, out / BACKBONE, dirs_exist_ok=True)
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


def main(config: Config) -> None:
    """Trains and saves."""
    torch.set_num_threads(config.threads)
    training = Training(config)
    training.run(minutes=config.minutes)
    training.export()


if __name__ == "__main__":
    main(tyro.cli(Config))
