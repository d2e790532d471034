"""What taps and edits cost: one sampler with and without them, as ratios within one run.

    python -m experiments.bench.bench_hooks
    python -m experiments.bench.bench_hooks --size board   # the shipped policies' sizes
    python -m experiments.bench.bench_hooks --size full    # 3 B parameters in bfloat16: a GPU
    XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false python -m ...  # see below

The arms take turns (`turns`): a program of 0.5 ms that was not the last to run is up to 20% slower
for its cold caches. Two clocks: the wall's, and the time that the process computed on any core,
which other processes disturb far less (on a GPU it says nothing). `bare again` is the bare sampler
compiled once more: how far it is from 1 is what the machine adds. Weights are constant: a flow's
time does not depend on them, and pi0-FAST then writes to its last step.

On a CPU, XLA hands independent operations to a pool of threads. A decoding step of the tests'
pi0-FAST is a chain of operations of a microsecond, and one that branches off it, as a tap or an
edit does, brings in the pool, which costs more than the operation. With the flag above XLA leaves
the pool out of it, for every arm alike: what remains is the work of the hooks.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.turns import Ratio, ratio, take_turns
from experiments.record import command, write_results
from experiments.train.board_fast_model import fast_config
from experiments.train.board_model import board_config
from mistjax.hooks import POINTS, Add, Hooks, Tap
from mistjax.models.config import PI0, PI05, TINY, TINY_FAST, FastConfig, Pi0Config
from mistjax.models.pi0 import example_observation
from mistjax.policies.memory import infer, variable_shapes

BOARD = board_config(vocab_size=40)
MODELS = {
    "tiny": {"pi0": TINY, "pi05": dataclasses.replace(TINY, pi05=True), "pi0_fast": TINY_FAST},
    "board": {
        "pi0": BOARD,
        "pi05": dataclasses.replace(BOARD, pi05=True),
        "pi0_fast": fast_config(vocab_size=965),
    },
    "full": {"pi0": PI0, "pi05": PI05, "pi0_fast": FastConfig()},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
        models: of `MODELS`.
        size: that of the tests, of the shipped board policies, or of openpi's in bfloat16.
        batch: rows of one inference.
        turns: timed bursts of each arm.
        burst: calls of each.
        warm: calls before each, not timed.
        seed: of the order of the arms, and of the bootstrap.
        results: JSON file to write the rows to.
    """

    models: tuple[Literal["pi0", "pi05", "pi0_fast"], ...] = ("pi0", "pi0_fast")
    size: Literal["tiny", "board", "full"] = "tiny"
    batch: int = 1
    turns: int = 300
    burst: int = 10
    warm: int = 3
    seed: int = 0
    results: Path | None = None


def arms(config: Pi0Config | FastConfig) -> dict[str, Hooks]:
    """What each arm changes and records."""
    stacks = ("vision", "vlm", "action")
    middle = config.vlm.depth // 2

    def off(site: str, width: int) -> Add:
        return Add(site=site, vector=jnp.ones((config.vlm.depth, width)), strength=jnp.zeros(()))

    edits = off("vlm.mlp_out", config.vlm.width), off("action.mlp_out", config.experts[-1].width)
    every = tuple(Tap(f"{s}.{point}", reduce="mean") for s in stacks for point in POINTS)
    return {
        "bare": Hooks(),
        "bare again": Hooks(),
        "two edits, off": Hooks(edits),
        "one tap, mean": Hooks((), (Tap("vlm.resid", (middle,), "text", "mean"),)),
        "one action tap, mean": Hooks((), (Tap("action.resid", (middle,), "action", "mean"),)),
        f"all {len(every)} taps, mean": Hooks((), every),
    }


def make_sampler(config: Pi0Config | FastConfig, batch: int) -> Callable[..., Any]:
    """`(arm, hooks) -> actions and taps`, jitted for each arm, on constant weights."""
    variables = jax.tree.map(lambda s: jnp.full(s.shape, 1e-2, s.dtype), variable_shapes(config))
    obs, keys = example_observation(config, batch), jax.random.split(jax.random.key(0), batch)

    def sample(variables, obs, keys, hooks, arm):
        del arm  # static, so that each arm has a program of its own
        return infer(config, variables, obs, keys, hooks)

    jitted = jax.jit(sample, static_argnames="arm")
    return lambda arm, hooks: jitted(variables, obs, keys, hooks, arm=arm)


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm: median milliseconds, and the ratio to bare by both clocks with 95% intervals."""

    model: str
    arm: str
    milliseconds: float
    wall: Ratio
    cpu: Ratio


def time_arms(config: Config, name: str) -> list[Row]:
    """Every arm of one model."""
    sizes = MODELS[config.size][name]
    sample, rng = make_sampler(sizes, config.batch), np.random.default_rng(config.seed)
    calls = {arm: functools.partial(sample, arm, hooks) for arm, hooks in arms(sizes).items()}
    taken = take_turns(calls, turns=config.turns, burst=config.burst, warm=config.warm, rng=rng)
    rows = []
    for arm, seconds in taken.items():
        wall, cpu = (ratio(seconds[:, i], taken["bare"][:, i], rng) for i in (0, 1))
        rows.append(Row(name, arm, 1e3 * float(np.median(seconds[:, 0])), wall, cpu))
    return rows


def main(config: Config) -> list[Row]:
    """Times every arm of every model and prints the table."""
    device = jax.devices()[0]
    machine = (
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, XLA_FLAGS {os.environ.get('XLA_FLAGS', 'not set')}"
    )
    print(f"{config}\non {machine}")
    rows = [row for name in config.models for row in time_arms(config, name)]
    _print(rows)
    record = {
        "command": command("experiments.bench.bench_hooks"),
        "config": {k: str(v) for k, v in dataclasses.asdict(config).items()},
        "machine": machine,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_results(config.results, record)
    return rows


def _print(rows: Sequence[Row]) -> None:
    def text(ratio: Ratio) -> str:
        return "x {:.3f} [{:.3f}, {:.3f}]".format(*ratio)

    for row in rows:
        print(
            f"{row.model:9} {row.arm:22} {row.milliseconds:9.3f} ms   wall {text(row.wall)}   "
            f"cpu {text(row.cpu)}"
        )


if __name__ == "__main__":
    main(tyro.cli(Config))
