"""Steps per second with 0, 1, 2, 4 worker processes: the same board episodes, one after the other.

    python -m experiments.bench.bench_workers --results experiments/results/bench_workers.json

The arms take turns, so that other load on the machine hits all of them, and a ratio is that of two
runs of one turn. What an arm starts (workers, compilation) is not timed: every arm plays one round
of episodes first. All arms have the same rows and a policy that only draws noise, so that the
environments are what takes the time; a policy that needs the CPU as well leaves less to gain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.record import command, write_results
from mistjax.rollouts.collect import make_env
from mistjax.rollouts.plan import BOARD_ENV
from mistjax.rollouts.workers.pool import EnvPool


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
        workers: the arms; the first one is what the others are compared with.
        rows: environments in lock-step.
        execute_steps: actions between two inferences.
        rounds: timed rounds of one turn.
        turns: how often each arm is timed.
        results: JSON file to write the rows to.
    """

    workers: tuple[int, ...] = (0, 1, 2, 4)
    rows: int = 8
    execute_steps: int = 4
    rounds: int = 5
    turns: int = 7
    results: Path | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm: median steps per second, and its ratio to the first arm with its quartiles."""

    workers: int
    steps_per_second: float
    ratio: float
    low: float
    high: float


def main(config: Config) -> list[Row]:
    """Times every arm and prints the table."""
    make = functools.partial(make_env, BOARD_ENV, max_steps=10**6)
    with contextlib.ExitStack() as stack:
        pools = {
            n: stack.enter_context(contextlib.closing(EnvPool(make, config.rows, n)))
            for n in config.workers
        }
        for pool in pools.values():
            starts = {row: ("reset", (row, row, {}, False)) for row in range(config.rows)}
            _round(pool, starts)
            _steps(pool, config, rounds=1)
        rates = {n: np.empty(config.turns) for n in pools}
        for turn in range(config.turns):
            for n, pool in pools.items():
                rates[n][turn] = _steps(pool, config, config.rounds)
    first = rates[config.workers[0]]
    rows = [_row(n, rate, first) for n, rate in rates.items()]
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}"
    print(f"{config}\non {machine}")
    for row in rows:
        print(
            f"{row.workers} workers {row.steps_per_second:8.1f} steps/s   x {row.ratio:.2f}  "
            f"({row.low:.2f} to {row.high:.2f})"
        )
    record = {
        "command": command("experiments.bench.bench_workers"),
        "config": dataclasses.asdict(config) | {"results": str(config.results)},
        "machine": machine,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_results(config.results, record)
    return rows


def _steps(pool: EnvPool, config: Config, rounds: int) -> float:
    """Steps per second over some rounds."""
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(rounds):
        actions = rng.uniform(-0.3, 0.3, (config.rows, config.execute_steps, 4)).astype(np.float32)
        _round(pool, {row: ("act", (row, list(actions[row]))) for row in range(config.rows)})
    return rounds * config.rows * config.execute_steps / (time.perf_counter() - start)


def _round(pool: EnvPool, requests: dict) -> None:
    for row, reply in pool.exchange(requests):
        if reply.error is not None or reply.lost:
            raise RuntimeError(f"row {row} crashed:\n{reply.error}")


def _row(workers: int, rate: np.ndarray, first: np.ndarray) -> Row:
    low, ratio, high = np.quantile(rate / first, (0.25, 0.5, 0.75))
    return Row(workers, float(np.median(rate)), float(ratio), float(low), float(high))


if __name__ == "__main__":
    main(tyro.cli(Config))
