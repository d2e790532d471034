"""What watching, naming and repairing cost beside the bare policy, in one run.

    python -m experiments.bench.bench_mist --results experiments/results/bench_mist.json

Arms: the bare policy; its inputs watched, without an alarm, and with a first alarm of a state in
every row, so that the cameras are asked; the failure monitor without an alarm, and its remedy in
every row, when it begins (attribution and a second sampling) and when it goes on (the latter only).
At the board's size, and with networks of width 512, at batch 1 and 8. Each arm takes its turns in
random order; CPU time is the ratio that a busy machine disturbs least.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.turns import ratio, take_turns
from mistjax.compilation import enable_cache
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.fit import Recorded, fit_inputs
from mistjax.detect.novelty.reading import Reading
from mistjax.models.config import Pi0Config
from mistjax.models.pi0 import example_observation
from mistjax.policies import BOARD, PiPolicy, random_policy
from mistjax.recover.artifact import load_mist
from mistjax.recover.watched import Watched

SHIPPED = Path("checkpoints")


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is timed.

    Attributes:
        widths: of the networks; 96 is the shipped board policy.
        batches: rows of one inference.
        turns: timed bursts of each arm.
        burst: calls of each.
        warm: calls before each, not timed.
        failure: whether the failure monitor and its remedy are timed too, at the board's size.
        seed: of the order of the arms, and of the bootstrap.
        results: JSON file to write.
    """

    widths: tuple[int, ...] = (96, 512)
    batches: tuple[int, ...] = (1, 8)
    turns: int = 40
    burst: int = 5
    warm: int = 2
    failure: bool = True
    seed: int = 0
    results: Path | None = None


def wide(policy: Any, width: int) -> Any:
    """A policy of random weights whose networks have another width."""
    c: Pi0Config = policy.config

    def scaled(expert: Any) -> Any:
        return dataclasses.replace(expert, width=width, mlp_dim=4 * width)

    config = dataclasses.replace(
        c, siglip=scaled(c.siglip), vlm=scaled(c.vlm), action_expert=scaled(c.action_expert)
    )
    return random_policy(config, policy.tokenizer, BOARD)


def random_inputs(policy: Any) -> Any:
    """A monitor of the right sizes, fitted to noise: what it says means nothing."""
    rng, episodes, looks = np.random.default_rng(0), 12, 6
    c = policy.config
    shape = (episodes, looks, len(c.image_keys))
    readings = Reading(
        tokens=rng.normal(size=(*shape, 16, c.siglip.width)).astype(np.float32),
        grid=rng.normal(size=(*shape, 8, 8, 3)).astype(np.float32),
        detail=rng.normal(size=(*shape, 8, 8)).astype(np.float32),
        state=rng.normal(size=(episodes, looks, c.action_dim)).astype(np.float32),
        prompt=rng.integers(1, 20, (episodes, looks, c.max_token_len)),
    )
    commands = rng.normal(size=(episodes, looks, 4, policy.spec.action_dim)).astype(np.float32)
    recorded = Recorded(readings, commands, np.ones((episodes, looks), bool))
    return fit_inputs(policy, recorded, steps=2, components=128, hidden=(256, 128))


def limited(inputs: Any, limit: float) -> Any:
    upper = jnp.array([limit], jnp.float32)
    return dataclasses.replace(inputs, threshold=dataclasses.replace(inputs.threshold, upper=upper))


def arms(policy: Any, inputs: Any, batch: int, failure: bool) -> dict[str, Callable[[], Any]]:
    """Each a call of one inference."""
    obs = jax.tree.map(jnp.asarray, example_observation(policy.config, batch))
    keys = jax.random.split(jax.random.key(0), batch)

    def call(policy: Any, state: Any = ()) -> Callable[[], Any]:
        return lambda: policy.sample(obs, keys, state=state)

    quiet, loud = Watched(policy, limited(inputs, 1e30)), Watched(policy, limited(inputs, -1.0))
    first = quiet.sample(obs, keys).state
    moved = dataclasses.replace(first.inputs, state=first.inputs.state + 100.0)
    found = {
        "bare": call(policy),
        "bare again": call(policy),
        "inputs watched, no alarm": call(quiet, first),
        "inputs watched, alarm in every row": call(loud, dataclasses.replace(first, inputs=moved)),
    }
    if not failure:
        return found
    mist = load_mist(SHIPPED / "board_mist", policy)
    mist = mist.policy if isinstance(mist, Watched) else mist
    upper = mist.monitor.threshold.upper

    def at(limit: float) -> Any:
        threshold = dataclasses.replace(mist.monitor.threshold, upper=jnp.full_like(upper, limit))
        return dataclasses.replace(
            mist, monitor=dataclasses.replace(mist.monitor, threshold=threshold)
        )

    begun = at(-1e9).sample(obs, keys).state
    return found | {
        "failure monitor, no alarm": call(at(1e9), mist.initial_state(batch)),
        "failure monitor, remedy begins in every row": call(at(-1e9), mist.initial_state(batch)),
        "failure monitor, remedy goes on in every row": call(at(-1e9), begun),
    }


def main(config: Config) -> list[dict[str, Any]]:
    """Times everything and prints a row an arm."""
    rng, rows = np.random.default_rng(config.seed), []
    shipped = PiPolicy.load(SHIPPED / "board_pi0", BOARD)
    for width in config.widths:
        board = width == shipped.config.vlm.width
        policy = shipped if board else wide(shipped, width)
        fitted = board and (SHIPPED / "board_mist" / "inputs.json").exists()
        inputs = (
            load_inputs(SHIPPED / "board_mist", policy.spec.fingerprint)
            if fitted
            else random_inputs(policy)
        )
        for batch in config.batches:
            taken = take_turns(
                arms(policy, inputs, batch, board and config.failure),
                turns=config.turns,
                burst=config.burst,
                warm=config.warm,
                rng=rng,
            )
            for arm, seconds in taken.items():
                wall, cpu = (ratio(seconds[:, i], taken["bare"][:, i], rng) for i in (0, 1))
                row = {"width": width, "batch": batch, "arm": arm}
                row |= {"milliseconds": 1e3 * float(np.median(seconds[:, 0]))}
                row |= {"wall": list(wall), "cpu": list(cpu)}
                rows.append(row)
                shown = f"x {cpu[0]:.3f} [{cpu[1]:.3f}, {cpu[2]:.3f}] CPU"
                print(f"{width:4d} {batch:2d} {arm:46s} {shown}", flush=True)
    if config.results is not None:
        record = {
            "command": f"python -m experiments.bench.bench_mist {' '.join(sys.argv[1:])}",
            "load": os.getloadavg()[0],
            "device": str(jax.devices()[0]),
            "rows": rows,
        }
        config.results.write_text(json.dumps(record, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
