"""What watching, naming and repairing cost beside the bare policy, in one run.

    python -m experiments.bench.bench_mist --results experiments/results/bench_mist.json

Arms: the bare policy; its inputs watched and ready to be repaired, without an alarm, with a first
alarm of a state in every batch element (the cameras are asked, and the state is dead-reckoned), and
with a camera that goes on being imputed in every one, alone and within a cap that needs the bare
chunk too; the failure monitor without an alarm, and its remedy, when it begins (attribution and a
second sampling) in one batch element and in all, and when it goes on (the latter only).
At the board's size, and with networks of width 512, at batch 1 and 8. Each arm takes its turns in
random order; CPU time is the ratio that a busy machine disturbs least.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.turns import ratio, take_turns
from experiments.record import command, write_results
from mistjax.compilation import enable_cache
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.fit import Recorded, fit_inputs
from mistjax.detect.novelty.reading import Reading
from mistjax.models.config import Pi0Config
from mistjax.models.pi0 import example_observation
from mistjax.policies import BOARD, PiPolicy, random_policy
from mistjax.recover.artifact import load_mist
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.repaired import Repaired
from mistjax.recover.watched import Watched
from mistjax.steer.remedies.artifact import RepairConfig, load_repairs, make_remedies
from mistjax.steer.remedies.fit_imputer import fit_imputer
from mistjax.steer.remedies.imputer import Imputer

SHIPPED = Path("checkpoints")


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is timed.

    Attributes:
        widths: of the networks; 96 is the shipped board policy.
        batches: batch elements of one inference.
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


def random_imputer(policy: Any, inputs: Any) -> Imputer:
    """An imputer of the right sizes, fitted to noise; it thinks that it knows."""
    rng, cameras = np.random.default_rng(0), policy.config.image_keys
    width = policy.config.num_image_tokens // len(cameras) * policy.config.vlm.width
    imputer, _ = fit_imputer(
        cameras,
        rng.normal(size=(400, len(cameras), width)).astype(np.float32),
        rng.normal(size=(400, inputs.state_mean.shape[0])).astype(np.float32),
        np.arange(400) // 10,
        steps=2,
    )
    sure = jnp.full(len(cameras), 1e-9)
    return dataclasses.replace(imputer, usual=sure, familiar=1 / sure)


def limited(monitor: Any, limit: float) -> Any:
    """With the same threshold at every inference."""
    threshold = monitor.threshold
    upper = jnp.full_like(threshold.upper, limit)
    return dataclasses.replace(monitor, threshold=dataclasses.replace(threshold, upper=upper))


def arms(
    policy: Any, inputs: Any, remedies: Any, batch: int, failure: bool
) -> dict[str, Callable[[], Any]]:
    """Each a call of one inference."""
    obs = jax.tree.map(jnp.asarray, example_observation(policy.config, batch))
    shades = jnp.linspace(-1, 1, batch)[:, None, None, None]
    obs = dataclasses.replace(obs, images={k: x + shades for k, x in obs.images.items()})
    keys = jax.random.split(jax.random.key(0), batch)

    def call(policy: Any, state: Any = ()) -> Callable[[], Any]:
        return lambda: policy.sample(obs, keys, state=state)

    def repaired(limit: float, cap: float = 1.0) -> Repaired:
        limits = FusionLimits.of(policy.spec, cap, policy.chunk_width)
        config = RepairConfig(cap=cap)
        return Repaired(policy, limited(inputs, limit), remedies, limits, config)

    quiet, loud = repaired(1e30), repaired(-1.0)
    first = quiet.sample(obs, keys).state
    moved = dataclasses.replace(first.inputs, state=first.inputs.state + 100.0)
    imputed = dataclasses.replace(first.repair, active=first.repair.active.at[:, 0].set(True))
    going_on = dataclasses.replace(first, repair=imputed)
    found = {
        "bare": call(policy),
        "bare again": call(policy),
        "inputs watched, no alarm": call(quiet, first),
        "a state alarms and is repaired, all": call(loud, dataclasses.replace(first, inputs=moved)),
        "a camera goes on being repaired, all": call(quiet, going_on),
        "a camera goes on being repaired, cap 0.5, all": call(repaired(1e30, 0.5), going_on),
    }
    if not failure:
        return found
    mist: Any = load_mist(SHIPPED / "board_mist", policy)
    mist = mist.policy if isinstance(mist, Watched) else mist

    def at(limit: float) -> Any:
        return dataclasses.replace(mist, monitor=limited(mist.monitor, limit))

    start = mist.initial_state(batch)
    scores = np.sort(np.asarray(at(1e9).sample(obs, keys).aux["score"]))
    between = float(scores[-2:].mean()) if batch > 1 else -1e9
    begun = at(-1e9).sample(obs, keys).state
    return found | {
        "failure monitor, no alarm": call(at(1e9), start),
        "failure monitor, remedy begins, one": call(at(between), start),
        "failure monitor, remedy begins, all": call(at(-1e9), start),
        "failure monitor, remedy goes on, all": call(at(-1e9), begun),
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
        if fitted and (SHIPPED / "board_mist" / "repairs.json").exists():
            remedies, _ = load_repairs(SHIPPED / "board_mist", policy.spec.fingerprint, inputs)
        else:
            remedies = make_remedies(inputs, random_imputer(policy, inputs))
        for batch in config.batches:
            taken = take_turns(
                arms(policy, inputs, remedies, batch, board and config.failure),
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
    record = {
        "command": command("experiments.bench.bench_mist"),
        "load": os.getloadavg()[0],
        "device": str(jax.devices()[0]),
        "rows": rows,
    }
    write_results(config.results, record)
    return rows


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
