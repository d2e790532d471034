"""The board in one compiled program beside the host loop, on this machine's CPU, in turns.

    python -m experiments.bench.bench_jit --json experiments/results/bench_jit.json

Three arms play the same seeds with `board_pi0`: the host loop as `collect` runs it, the host loop
when every step draws its pictures, and the compiled program. What they take is told as wall clock
and as CPU time, which a busy machine changes less. `cpu_ms` is of one inference of one environment,
each part compiled alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import tyro

from experiments.record import write_results
from mistjax.envs.board.functional import FunctionalBoard
from mistjax.policies.load import load_policy
from mistjax.policies.wrapper import traceable
from mistjax.rollouts.collect import make_env
from mistjax.rollouts.compiled import CompiledRollouts, Outcomes
from mistjax.rollouts.plan import BOARD_ENV, EpisodePlan
from mistjax.rollouts.runner import run_episodes

COMPILATION = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed.

    Attributes:
        num_envs: boards of the compiled program.
        host_envs: boards of the host loop.
        episodes: of one turn of an arm; with as many as boards, the last ones keep them waiting.
        turns: of each arm.
        first_seed: of the episodes.
        policy: what acts.
        json: file to write.
    """

    num_envs: int = 64
    host_envs: int = 16
    episodes: int = 256
    turns: int = 1
    first_seed: int = 23_800_000
    policy: str = "checkpoints/board_pi0"
    json: Path | None = None


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of an arm: environment steps, seconds by both clocks, and successes."""

    steps: int
    wall: float
    cpu: float
    successes: int


def timed(play: Callable[[], tuple[int, int]]) -> Turn:
    """`play` returns (steps, successes)."""
    wall, cpu = time.perf_counter(), time.process_time()
    steps, successes = play()
    return Turn(steps, time.perf_counter() - wall, time.process_time() - cpu, successes)


def host(policy: Any, config: Config, seeds: range, picture_every: int) -> tuple[int, int]:
    """The host loop on some seeds, recorded in memory as `collect` records them."""
    make = functools.partial(make_env, BOARD_ENV, picture_every=picture_every)
    plan = EpisodePlan(num_envs=config.host_envs)
    run = run_episodes(policy, make, seeds, plan, progress=False)
    return sum(row["steps"] for row in run.rows), sum(row["success"] for row in run.rows)


def parts(policy: Any, board: FunctionalBoard, slots: int) -> dict[str, float]:
    """CPU milliseconds of an inference of one of so many boards, by part."""
    start, prompts, _ = board.draw_starts(range(slots))
    states = jax.jit(jax.vmap(board.reset))(start)
    raw, _ = jax.jit(board.observe)(states)
    words, keys = policy.encode_prompts(prompts), jax.vmap(jax.random.key)(jnp.arange(slots))

    def act(policy, raw, keys):
        return policy.act(policy.sample(traceable(policy).observe(raw, words), keys), raw)

    programs = {
        "policy": (jax.jit(act), (policy, raw, keys), 1),
        "pictures": (jax.jit(board.pictures), (states,), 1),
        "physics": (
            jax.jit(jax.vmap(board.step)),
            (states, jnp.zeros((slots, 4))),
            policy.spec.execute_steps,
        ),
    }
    found = {}
    for name, (program, arguments, calls) in programs.items():
        jax.block_until_ready(program(*arguments))
        costs = []
        for _ in range(8):
            before = time.process_time()
            jax.block_until_ready(program(*arguments))
            costs.append(time.process_time() - before)
        found[name] = 1e3 * calls * statistics.median(costs) / slots
    return found


def main(config: Config) -> None:
    """Times, prints, writes."""
    compilations: list[float] = []

    def count(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILATION:
            compilations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(count)
    policy, board = load_policy(config.policy), FunctionalBoard()
    rollouts = CompiledRollouts(policy, board, num_envs=config.num_envs)
    looks = policy.spec.execute_steps

    def seeds(turn: int) -> range:
        first = config.first_seed + turn * config.episodes
        return range(first, first + config.episodes)

    def compiled(turn: int, **options: Any) -> tuple[int, int]:
        drawn = board.draw_starts(seeds(turn), **options)
        outcomes: Outcomes = rollouts.run(rollouts.table(seeds(turn), drawn.start, drawn.prompts))
        return int(outcomes.steps.sum()), int(outcomes.success.sum())

    def looped(turn: int, picture_every: int) -> tuple[int, int]:
        few = slice(config.host_envs if turn < 0 else None)  # enough to compile
        return host(policy, config, seeds(turn)[few], picture_every)

    arms = {
        "host loop": lambda turn: looped(turn, looks),
        "host loop, a picture every step": lambda turn: looped(turn, 1),
        "compiled": compiled,
    }
    warm = {name: timed(lambda play=play: play(-1)) for name, play in arms.items()}
    done = len(compilations)
    found: dict[str, list[Turn]] = {name: [] for name in arms}
    for turn in range(config.turns):
        for name, play in arms.items():
            found[name].append(timed(lambda play=play, turn=turn: play(turn)))
    compiled(config.turns, perturbation={"camera_angle": 0.5, "stone_count": 1.0})
    recompiles = len(compilations) - done

    def total(name: str, field: str) -> float:
        return sum(getattr(turn, field) for turn in found[name])

    def speed(name: str, clock: str) -> float:
        return total(name, "steps") / total(name, clock)

    now, before, fast = arms
    n = config.turns * config.episodes
    memory = rollouts.prepare(
        rollouts.table(seeds(0), *board.draw_starts(seeds(0))[:2])
    ).compiled.memory_analysis()
    report = {
        "ratio_to_host_loop": speed(fast, "wall") / speed(now, "wall"),
        "ratio_to_host_loop_cpu": speed(fast, "cpu") / speed(now, "cpu"),
        "ratio_to_a_picture_every_step": speed(fast, "wall") / speed(before, "wall"),
        "gain_of_fewer_pictures": speed(now, "wall") / speed(before, "wall"),
        "gain_of_fewer_pictures_cpu": speed(now, "cpu") / speed(before, "cpu"),
        "recompiles": recompiles,
        "success_jit": total(fast, "successes") / n,
        "success_host": total(now, "successes") / n,
        "n": n,
        "cpu_ms": parts(policy, board, config.num_envs)
        | {"whole": 1e3 * looks / speed(fast, "cpu")},
        "steps_per_second": {name: speed(name, "wall") for name in arms},
        "steps_per_cpu_second": {name: speed(name, "cpu") for name in arms},
        "seconds_of_the_first_turn": {name: turn.wall for name, turn in warm.items()},
        "bytes_per_environment": memory and memory.temp_size_in_bytes // config.num_envs,
        "config": {**dataclasses.asdict(config), "json": None},
        "devices": jax.device_count(),
        "turns": {name: [dataclasses.asdict(t) for t in turns] for name, turns in found.items()},
    }
    print(json.dumps(report, indent=1))
    write_results(config.json, report)


if __name__ == "__main__":
    main(tyro.cli(Config))
