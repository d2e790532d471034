"""What a device holds and says where full-size pi0 is spread over a group of devices.

    python -m experiments.build.spread_memory

From shapes alone: nothing is run. Weights are bfloat16 and divided as `rollouts.compiled.cut`
divides them. `cached` are keys and values of the prefix. Of what devices of a group send each
other, `weights` is the price of putting every matrix together at each inference, `activations` that
of adding up what parts of matrices make of the prefix, twice a layer; XLA chooses by itself.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.record import write_results
from mistjax.models import pi0
from mistjax.models.config import Pi0Config
from mistjax.rollouts.compiled import FSDP, cut

BYTES = 2
"""Of one bfloat16."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is reckoned.

    Attributes:
        devices: numbers of devices; each is taken as one group, and as groups of eight.
        environments: of one device.
        results: file to write.
    """

    devices: tuple[int, ...] = (1, 8, 64)
    environments: int = 64
    results: Path = Path("experiments/results/spread_memory.json")


def rows(config: Config) -> list[dict[str, Any]]:
    """One row for each number of devices and size of group."""
    model = Pi0Config()
    leaves = jax.tree.leaves(jax.eval_shape(lambda: pi0.init(model, jax.random.key(0))))
    expert, numbers = model.vlm, sum(math.prod(leaf.shape) for leaf in leaves)
    cached = 2 * expert.depth * model.prefix_len * expert.num_kv_heads * expert.head_dim * BYTES
    added = 2 * expert.depth * model.prefix_len * expert.width * BYTES
    found = []
    for devices in config.devices:
        for fsdp in sorted({1, min(8, devices), devices}):
            held = sum(
                math.prod(leaf.shape) // (fsdp if FSDP in cut(leaf.shape, fsdp) else 1)
                for leaf in leaves
            )
            share = (fsdp - 1) / fsdp
            found.append(
                {
                    "devices": devices,
                    "fsdp": fsdp,
                    "weights_gb": held * BYTES / 1e9,
                    "cached_gb": config.environments * cached / 1e9,
                    "environments": devices * config.environments,
                    "sent_weights_gb": share * numbers * BYTES / 1e9,
                    "sent_activations_gb": 2 * share * fsdp * config.environments * added / 1e9,
                }
            )
    return found


def main(config: Config) -> None:
    """Reckons and writes."""
    results = {
        "command": "python -m experiments.build.spread_memory",
        "environments_a_device": config.environments,
        "rows": rows(config),
    }
    write_results(config.results, results)


if __name__ == "__main__":
    main(tyro.cli(Config))
