"""Everything that wants a GPU, in one script: compiled rollouts, and the policies' published sizes.

    python -m experiments.bench.bench_gpu --results experiments/results/bench_gpu.json
    OPENPI_SRC=openpi/src python -m experiments.bench.bench_gpu ...      # beside openpi's own
    python -m experiments.bench.bench_gpu --small                        # does it run here?

Under 8 minutes on an H100. A part that the results file holds is not run again, and none begins
once `seconds` have gone by, so the same command goes on where it was cut off. Parts:

- `rollouts/N`: `board_pi0` with N boards in one program (physics, pictures, policy): environment
  steps and episodes a second with all rows busy, memory, and launches of a round
- `monitored/N`, `mist/N`: the same with the shipped monitor, and with its remedy
- `host loop`: `run_episodes` on two cores of this machine's CPU; needs MuJoCo
- `pi0`, `pi0_fast`: `bench_full_size`, 3.3 B random weights in bfloat16

Programs of all parts are compiled side by side, since one is compiled on one core, and the host
loop runs beside them where there are 8 cores; only then is anything on the GPU timed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.bench import bench_full_size
from experiments.bench.kernels import count_kernels
from experiments.record import command, write_results
from mistjax.envs.board.functional import Drawn, FunctionalBoard
from mistjax.policies import BOARD, PiPolicy
from mistjax.recover.artifact import load_mist, load_monitor
from mistjax.recover.mist import MistPolicy
from mistjax.rollouts.compiled import CompiledRollouts, Table

CHECKPOINTS = Path("checkpoints")
SEED = 5000
"""Of the first episode; the others follow."""
HOST_CORES = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else [0]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
        sizes: boards at once.
        mist_size: boards at once with monitor and remedy; 0 leaves those parts out.
        rounds: inferences of one call of a program.
        calls: timed calls.
        models: published sizes to time; see `bench_full_size`.
        turns: of each of their arms; a third of them for pi0-FAST, which takes longer.
        tokens: that pi0-FAST writes.
        host_episodes: of the host loop, at least 8; 0 leaves it out.
        seconds: no part begins later.
        small: little of everything, to try the script on a CPU.
        results: JSON file, written after every part.
    """

    sizes: tuple[int, ...] = (4096, 512, 64, 16384)
    mist_size: int = 4096
    rounds: int = 16
    calls: int = 3
    models: tuple[bench_full_size.Model, ...] = ("pi0", "pi0_fast")
    turns: int = 10
    tokens: int = 32
    host_episodes: int = 48
    seconds: float = 400.0
    small: bool = False
    results: Path | None = None


SMALL = {
    "sizes": (4, 8),
    "mist_size": 4,
    "rounds": 4,
    "calls": 1,
    "turns": 2,
    "host_episodes": 8,
    "seconds": 3600.0,
}


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """One size of compiled rollouts.

    Attributes:
        steps_per_second, episodes_per_second: of busy rows; of episodes that ended.
        ms_per_round: one inference and the actions that follow, of all rows.
        launches_per_round: see `kernels`; None where the HLO could not be read.
        success: share of the ended episodes, and their number.
        argument_bytes, temporary_bytes: of the program.
        compile_seconds: of the program, beside others.
    """

    num_envs: int
    steps_per_second: float
    episodes_per_second: float
    ms_per_round: float
    launches_per_round: float | None
    success: float
    ended: int
    argument_bytes: int
    temporary_bytes: int
    compile_seconds: float


def policy_of(kind: str) -> Any:
    """The shipped policy: bare, monitored, or with its remedy."""
    bare = PiPolicy.load(CHECKPOINTS / "board_pi0", BOARD)
    if kind == "rollouts":
        return bare
    if kind == "monitored":
        return MistPolicy(bare, load_monitor(CHECKPOINTS / "board_mist", bare))
    return load_mist(CHECKPOINTS / "board_mist", bare)


class Program:
    """A size of compiled rollouts, compiled before it is run."""

    def __init__(self, kind: str, num_envs: int, config: Config, drawn: Drawn) -> None:
        rollouts = CompiledRollouts(
            policy_of(kind), FunctionalBoard(), num_envs=num_envs, rounds=config.rounds
        )
        seeds = range(SEED, SEED + len(drawn.prompts))
        table = rollouts.table(seeds, drawn.start, drawn.prompts)
        start = time.perf_counter()
        self.num_envs, self.config = num_envs, config
        self.run = rollouts.prepare(_repeated(table, num_envs * 2 * (config.calls + 2)))
        self.compile_seconds = time.perf_counter() - start

    def time(self) -> Rollouts:
        """Runs it."""
        self.run.advance()  # the first episodes begin together: let them spread
        reports, start = [], time.perf_counter()
        for _ in range(self.config.calls):
            reports.append(self.run.advance())
        seconds = time.perf_counter() - start
        rounds = self.config.calls * self.config.rounds
        ended = np.concatenate([r.ended.ravel() for r in reports])
        success = np.concatenate([r.success.ravel() for r in reports])[ended]
        memory, hlo = self.run.compiled.memory_analysis(), self.run.compiled.as_text()
        if memory is None or hlo is None:
            raise ValueError(f"{jax.default_backend()} does not report the memory of a program.")
        try:
            launches = count_kernels(hlo) / self.config.rounds
        except (KeyError, ValueError) as error:
            print(f"launches are not counted: {error!r}", flush=True)
            launches = None
        return Rollouts(
            num_envs=self.num_envs,
            steps_per_second=sum(int(r.executed.sum()) for r in reports) / seconds,
            episodes_per_second=float(ended.sum() / seconds),
            ms_per_round=1e3 * seconds / rounds,
            launches_per_round=launches,
            success=float(success.mean()) if len(success) else float("nan"),
            ended=int(ended.sum()),
            argument_bytes=memory.argument_size_in_bytes,
            temporary_bytes=memory.temp_size_in_bytes,
            compile_seconds=self.compile_seconds,
        )


def _repeated(table: Table, episodes: int) -> Table:
    """The table's episodes over and over."""
    rows = np.arange(episodes) % len(table.seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], table)


def host_loop(episodes: int) -> dict[str, float] | str:
    """Steps a second of `run_episodes` on two cores, in a process without the GPU."""
    if missing := [m for m in ("mujoco", "gymnasium") if importlib.util.find_spec(m) is None]:
        return f"not measured: {missing} are not installed"
    code = (
        "import json, os, sys, time\n"
        "if hasattr(os, 'sched_setaffinity'):\n"
        "    os.sched_setaffinity(0, map(int, sys.argv[2].split(',')))\n"
        "from mistjax.policies import BOARD, PiPolicy\n"
        "from mistjax.rollouts.collect import make_env\n"
        "from mistjax.rollouts.plan import BOARD_ENV\n"
        "from mistjax.rollouts.runner import run_episodes\n"
        "import functools\n"
        "policy = PiPolicy.load('checkpoints/board_pi0', BOARD)\n"
        "make = functools.partial(make_env, BOARD_ENV)\n"
        "n = int(sys.argv[1])\n"
        "run_episodes(policy, make, range(8), num_envs=8, progress=False, max_steps=8)\n"
        "start = time.perf_counter()\n"
        "seeds = range(int(sys.argv[3]), int(sys.argv[3]) + n)\n"
        "run = run_episodes(policy, make, seeds, num_envs=8, progress=False)\n"
        "seconds = time.perf_counter() - start\n"
        "steps = sum(row['steps'] for row in run.rows)\n"
        "success = sum(bool(row['success']) for row in run.rows) / n\n"
        "print(json.dumps({'steps_per_second': steps / seconds, 'success': success,\n"
        "    'episodes': n, 'cores': 2}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(episodes), ",".join(map(str, HOST_CORES)), str(SEED)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the host loop failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class Arms:
    """The arms of one published size, compiled before they are timed."""

    def __init__(self, name: bench_full_size.Model, config: Config) -> None:
        self.name: bench_full_size.Model = name
        self.config = bench_full_size.Config(
            models=(name,),
            size="tiny" if config.small else "full",
            turns=max(1, config.turns // 3) if name == "pi0_fast" else config.turns,
            tokens=config.tokens,
        )
        self.calls = bench_full_size.make_arms(self.config, name)
        bench_full_size.compile_arms(self.calls)

    def time(self) -> list[dict[str, Any]]:
        """Rows of `bench_full_size`."""
        rows = bench_full_size.time_arms(self.config, self.name, self.calls)
        return [dataclasses.asdict(row) for row in rows]


def main(config: Config) -> dict[str, Any]:
    """Runs every part that the results file lacks; prints and writes after each."""
    if config.small:
        config = dataclasses.replace(config, **SMALL)
    begun, device = time.perf_counter(), jax.devices()[0]
    machine = (
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}"
    )
    record: dict[str, Any] = {
        "command": command("experiments.bench.bench_gpu"),
        "machine": machine,
        "config": {name: str(value) for name, value in dataclasses.asdict(config).items()},
        "parts": {},
    }
    if config.results is not None and config.results.exists():
        earlier = json.loads(config.results.read_text())
        if earlier["machine"] != machine:
            raise ValueError(
                f"{config.results} was measured on {earlier['machine']}, this is {machine}: name "
                "another file."
            )
        record["parts"] = earlier["parts"]
    print(machine, flush=True)
    if not os.environ.get("OPENPI_SRC"):
        print("OPENPI_SRC is not set: openpi's own sampler is not timed", flush=True)

    def late() -> bool:
        return time.perf_counter() - begun > config.seconds

    failed: dict[str, str] = {}

    def attempt(name: str, part: Callable[[], Any]) -> None:
        """Keeps what a part measured; one that fails is named at the end and costs no other."""
        try:
            result = part()
        except Exception:
            failed[name] = traceback.format_exc()
            print(f"{name} failed:\n{failed[name]}", flush=True)
            return
        result = dataclasses.asdict(result) if isinstance(result, Rollouts) else result
        record["parts"][name] = result
        print(f"{time.perf_counter() - begun:6.1f} s  {name}: {json.dumps(result)}", flush=True)
        write_results(config.results, record)

    kinds = [("rollouts", n) for n in config.sizes]
    kinds += [(kind, config.mist_size) for kind in ("monitored", "mist") if config.mist_size]
    kinds = [(kind, n) for kind, n in kinds if f"{kind}/{n}" not in record["parts"]]
    models: list[bench_full_size.Model] = [
        name for name in config.models if name not in record["parts"]
    ]
    host = config.host_episodes and "host loop" not in record["parts"]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        beside = pool.submit(host_loop, config.host_episodes) if host and _spare_cores() else None
        todo = []
        if kinds:
            episodes = min(2048, max(n for _, n in kinds))
            drawn = FunctionalBoard().draw_starts(range(SEED, SEED + episodes))
            todo = [
                (f"{kind}/{n}", pool.submit(Program, kind, n, config, drawn)) for kind, n in kinds
            ]
        todo += [(name, pool.submit(Arms, name, config)) for name in models]
        futures: list[concurrent.futures.Future[Any]] = [part for _, part in todo]
        futures += [beside] if beside is not None else []
        concurrent.futures.wait(futures, timeout=config.seconds * 0.7)
        print(f"{time.perf_counter() - begun:6.1f} s  compiled", flush=True)
        if beside is not None and beside.done():
            attempt("host loop", beside.result)
        for name, part in todo:
            if not part.done():
                failed[name] = "was not compiled in time"
            elif not late():
                attempt(name, lambda part=part: part.result().time())
        pool.shutdown(wait=False, cancel_futures=True)
    if host and beside is None and not late():
        attempt("host loop", lambda: host_loop(config.host_episodes))
    _print(record["parts"])
    if failed:
        raise SystemExit("\n".join(f"{name} failed: {reason}" for name, reason in failed.items()))
    return record


def _spare_cores() -> bool:
    """Leaves two cores to the host loop, where there are plenty."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 8:
        return False
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[2:])
    return True


def _print(parts: dict[str, Any]) -> None:
    host = parts.get("host loop")
    rate = host["steps_per_second"] if isinstance(host, dict) else None
    for name, part in parts.items():
        if "/" in name:
            ratio = f"  x {part['steps_per_second'] / rate:.0f} the host loop" if rate else ""
            print(
                f"{name:16} {part['steps_per_second']:12.0f} steps/s "
                f"{part['ms_per_round']:9.2f} ms a round, "
                f"{part['launches_per_round'] or 0:.0f} launches{ratio}"
            )
        elif isinstance(part, list):
            for row in part:
                print(f"{name:16} {row['arm']:26} {row['milliseconds']:9.2f} ms")


if __name__ == "__main__":
    main(tyro.cli(Config))
