"""Steps per second on LIBERO, and where the time of one goes.

    python -m experiments.bench.bench_libero --results experiments/results/bench_libero.json

Every arm steps the same two scenes through one inference's worth of actions: in one worker process
with pictures drawn where the policy looks, as episodes are run; with pictures at every step; and in
two worker processes. The arms take turns. What one step is made of is timed in this process, on a
scene of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.bench.turns import ratio, take_turns
from experiments.record import command, write_results
from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.envs.libero.env import LiberoEnv
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.rollouts.workers.pool import EnvPool

SCENES = 2
ARMS = {  # arm -> worker processes, and whether pictures are drawn at every step
    "1 worker": (1, False),
    "1 worker, pictures at every step": (1, True),
    "2 workers": (2, False),
}
FOREVER = 10**6


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
        policy: checkpoint, whose looks and pictures these are.
        suite: whose first task is played.
        turns: bursts of each arm.
        burst: inferences' worth of steps in each.
        results: JSON file.
    """

    policy: Path = SHIPPED / "libero_pi0"
    suite: str = "libero_object"
    turns: int = 10
    burst: int = 5
    results: Path | None = None


def main(config: Config) -> dict[str, Any]:
    """Times every arm and every part, and prints both tables."""
    enable_cache()
    policy = load_policy(config.policy)
    execute, rng = policy.spec.execute_steps, np.random.default_rng(0)
    options = {**policy.preset.env_options, "max_steps": FOREVER}
    parts = part_ms(policy, LiberoEnv(config.suite, 0, **options), 4 * config.turns)
    with contextlib.ExitStack() as stack:
        calls = {}
        for arm, (workers, always) in ARMS.items():
            every = 1 if always else execute
            make = functools.partial(LiberoEnv, config.suite, 0, picture_every=every, **options)
            pool = stack.enter_context(contextlib.closing(EnvPool(make, SCENES, workers)))
            _exchange(pool, {slot: ("reset", (slot, slot, {}, False)) for slot in range(SCENES)})
            calls[arm] = functools.partial(_act, pool, execute, np.random.default_rng(0))
        taken = take_turns(calls, turns=config.turns, burst=config.burst, warm=1, rng=rng)
    wall = {arm: seconds[:, 0] for arm, seconds in taken.items()}
    first = next(iter(ARMS))
    rows = [
        {
            "arm": arm,
            "steps_per_second": float(np.median(SCENES * execute / seconds)),
            "speed": ratio(wall[first], seconds, rng),
        }
        for arm, seconds in wall.items()
    ]
    results = {
        "command": command("experiments.bench.bench_libero"),
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "execute_steps": execute,
        "rows": rows,
        "part_ms": parts,
    }
    for row in rows:
        median, low, high = row["speed"]
        print(
            f"{row['arm']:34} {row['steps_per_second']:7.1f} steps/s   x {median:.2f} "
            f"[{low:.2f}, {high:.2f}]"
        )
    print({part: f"{ms:.1f} ms" for part, ms in parts.items()}, results["machine"])
    write_results(config.results, results)
    return results


def part_ms(policy: Policy, env: LiberoEnv, times: int) -> dict[str, float]:
    """Median milliseconds of a step of the physics, of both pictures, and of an inference."""
    key, still = jax.random.key(0), np.zeros(7)
    with contextlib.closing(env):
        raw, _ = env.reset(seed=0)

        def infer() -> None:
            jax.block_until_ready(policy.sample(policy.prepare([raw]), key).actions)

        return {
            "physics": _median_ms(lambda: env.simulator.step(still), times),
            "pictures": _median_ms(env.observe, times),
            "inference": _median_ms(infer, times),
        }


def _median_ms(call: Callable[[], Any], times: int) -> float:
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def _act(pool: EnvPool, execute: int, rng: np.random.Generator) -> None:
    actions = rng.uniform(-0.1, 0.1, (SCENES, execute, 7)).astype(np.float32)
    _exchange(pool, {slot: ("act", (slot, list(actions[slot]))) for slot in range(SCENES)})


def _exchange(pool: EnvPool, requests: dict) -> None:
    for slot, reply in pool.exchange(requests):
        if reply.error is not None or reply.lost:
            raise RuntimeError(f"scene {slot} crashed:\n{reply.error}")


if __name__ == "__main__":
    main(tyro.cli(Config))
