"""What taps and edits cost: one sampler with and without them, as ratios within one run.

    python -m experiments.bench.bench_hooks --size tiny
    python -m experiments.bench.bench_hooks --size pi0        # 3.3 B parameters in bfloat16: a GPU

The arms take turns, so that other load on the machine hits all of them; the ratio is the median of
the ratios of one turn. Weights are constant: the time does not depend on them.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from mistjax.hooks import POINTS, Add, Edit, Tap
from mistjax.models import pi0
from mistjax.models.config import PI0, PI05, TINY, Pi0Config
from mistjax.models.pi0 import Pi0
from mistjax.models.sampling import denoise, prefill

SIZES = {"tiny": TINY, "pi0": PI0, "pi05": PI05}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
        size: model sizes; every size but tiny computes in bfloat16.
        batch: rows of one inference.
        turns: timed calls of each arm, after one that is not timed.
    """

    size: Literal["tiny", "pi0", "pi05"] = "tiny"
    batch: int = 1
    turns: int = 200


Arm = tuple[tuple[Edit, ...], tuple[Tap, ...]]


def arms(config: Pi0Config) -> dict[str, Arm]:
    """Name -> (edits, taps)."""
    stacks = [name for stack in Pi0(config).stacks() for name in stack.streams]
    middle = config.vlm.depth // 2

    def off(site: str, width: int) -> Add:
        return Add(site=site, vector=jnp.ones((config.vlm.depth, width)), strength=jnp.zeros(()))

    every = tuple(Tap(f"{s}.{point}", reduce="mean") for s in stacks for point in POINTS)
    return {
        "bare": ((), ()),
        "no-op edits": (
            (
                off("vlm.mlp_out", config.vlm.width),
                off("action.mlp_out", config.action_expert.width),
            ),
            (),
        ),
        "one tap, mean": ((), (Tap("vlm.resid", (middle,), "text", "mean"),)),
        f"all {len(every)} taps, mean": ((), every),
    }


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm: median milliseconds, and its ratio to bare with the ratio's quartiles."""

    arm: str
    milliseconds: float
    ratio: float
    low: float
    high: float


def main(config: Config) -> list[Row]:
    """Times every arm and prints the table."""
    model_config = SIZES[config.size]
    model = Pi0(model_config)
    dtype = jnp.dtype(model_config.dtype)
    shapes = jax.eval_shape(lambda: pi0.init(model_config, jax.random.key(0)))
    variables = jax.tree.map(lambda s: jnp.full(s.shape, 1e-2, dtype), shapes)
    obs, noise, _ = pi0.example_inputs(model_config, config.batch)

    def sample(variables, obs, noise, edits, taps):
        prefix = prefill(model, variables, obs, taps=taps, edits=edits)
        steps = model_config.num_steps
        actions, found, _ = denoise(
            model, variables, prefix, obs.state, noise, num_steps=steps, taps=taps, edits=edits
        )
        return actions, prefix.taps, found

    jitted = jax.jit(sample, static_argnames="taps")
    calls = {
        name: lambda edits=edits, taps=taps: jitted(variables, obs, noise, edits, taps=taps)
        for name, (edits, taps) in arms(model_config).items()
    }
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: np.empty(config.turns) for name in calls}
    for turn in range(config.turns):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name][turn] = time.perf_counter() - start
    rows = [_row(name, taken, seconds["bare"]) for name, taken in seconds.items()]
    _print(config, rows)
    return rows


def _row(name: str, taken: np.ndarray, bare: np.ndarray) -> Row:
    low, ratio, high = np.quantile(taken / bare, (0.25, 0.5, 0.75))
    return Row(name, float(np.median(taken)) * 1e3, float(ratio), float(low), float(high))


def _print(config: Config, rows: Sequence[Row]) -> None:
    device = jax.devices()[0]
    print(
        f"{config}\non {device.device_kind} ({device.platform}), jax {jax.__version__}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for row in rows:
        print(
            f"{row.arm:24} {row.milliseconds:9.3f} ms   x {row.ratio:.3f}  "
            f"({row.low:.3f} to {row.high:.3f})"
        )


if __name__ == "__main__":
    main(tyro.cli(Config))
