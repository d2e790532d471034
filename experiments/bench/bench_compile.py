"""How long a compiled rollout takes to compile, and what one more environment takes of memory.

    python -m experiments.bench.bench_compile

The board's policy bare, and watched and repaired in full (`MistPolicy`). `first` compiles with an
empty cache on disk, `cached` is what a second process pays: tracing, and reading the program.
Memory is XLA's plan: what two sizes of the batch differ by, for each environment.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments.record import write_results
from mistjax.envs.board.functional import FunctionalBoard
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.recover.artifact import load_mist
from mistjax.rollouts.compiled import CompiledRollouts, Run

FIRST_SEED = 23_900_000


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compiled.

    Attributes:
        policy: what acts.
        mist: folder of its monitor and remedies.
        num_envs: boards of the program; memory is compared with that of half as many.
        results: file to write.
    """

    policy: str = "checkpoints/board_pi0"
    mist: Path = Path("checkpoints/board_mist")
    num_envs: int = 64
    results: Path = Path("experiments/results/bench_compile.json")


def compiled(policy: Policy, num_envs: int) -> tuple[Run, float]:
    """The program, and seconds that it took."""
    jax.clear_caches()
    board, seeds = FunctionalBoard(), range(FIRST_SEED, FIRST_SEED + num_envs)
    start, prompts, _ = board.draw_starts(seeds)
    rollouts = CompiledRollouts(policy, board, num_envs=num_envs)
    table, before = rollouts.table(seeds, start, prompts), time.perf_counter()
    run = rollouts.prepare(table)
    return run, time.perf_counter() - before


def planned(run: Run) -> int:
    """Bytes of the program beside its arguments and results."""
    plan = run.compiled.memory_analysis()
    assert plan is not None, "this backend does not say what a program takes"
    return plan.temp_size_in_bytes


def measure(name: str, policy: Policy, num_envs: int) -> dict[str, Any]:
    """One row."""
    first = compiled(policy, num_envs)
    cached = compiled(policy, num_envs)
    half = compiled(policy, num_envs // 2)
    whole = planned(first[0])
    row = {
        "policy": name,
        "first_s": first[1],
        "cached_s": cached[1],
        "bytes_per_environment": (whole - planned(half[0])) / (num_envs - num_envs // 2),
        "bytes": whole,
    }
    print(json.dumps(row), flush=True)
    return row


def main(config: Config) -> None:
    """Compiles, writes; prints a row as soon as it is measured."""
    bare = load_policy(config.policy)
    policies = {"bare": bare, "MIST": load_mist(config.mist, bare)}
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        rows = [measure(name, policy, config.num_envs) for name, policy in policies.items()]
    results = {
        "command": "python -m experiments.bench.bench_compile",
        "num_envs": config.num_envs,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "rows": rows,
    }
    write_results(config.results, results)


if __name__ == "__main__":
    main(tyro.cli(Config))
