"""Compiled rollouts of the trained board policy on several devices, for `test_compiled_devices`.

    python tests/rollouts/devices.py DEVICES:FSDP...
    python tests/rollouts/devices.py DEVICES:FSDP... --process I --port PORT

Prints one line of JSON for each grouping: how every episode ended and which devices talk. With
`--process` it is one of two processes that have the devices together.
"""

import argparse
import json
import os
import re

import numpy as np

SEEDS = range(5000, 5012)
COLLECTIVE = re.compile(
    r"= .*(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
)


def talking(hlo: str) -> set[tuple[int, ...]]:
    """Groups of devices that a program's collectives join."""
    found = set()
    for line in hlo.splitlines():
        if not COLLECTIVE.search(line):
            continue
        if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", line):
            found |= {tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1])}
        elif named := re.search(r"replica_groups=mesh\[([^\]]+)\] \{([^}]*)\}", line):
            sizes = {k: int(n) for k, n in (axis.split("=") for axis in named[1].split(","))}
            joined = named[2].split(",")
            devices = np.arange(np.prod([*sizes.values()])).reshape(*sizes.values())
            devices = np.moveaxis(devices, [[*sizes].index(a) for a in joined], range(len(joined)))
            width = np.prod([sizes[axis] for axis in joined])
            found |= {tuple(row) for row in devices.reshape(width, -1).T.tolist()}
        else:
            made = re.search(
                r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?,", line
            )
            assert made, f"no devices found in: {line}"
            shape = [int(n) for n in made[3].split(",")]
            order = [int(n) for n in made[4].split(",")] if made[4] else range(len(shape))
            devices = np.arange(np.prod(shape)).reshape(shape).transpose(order)
            found |= {tuple(row) for row in devices.reshape(int(made[1]), int(made[2])).tolist()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("groupings", nargs="+")
    parser.add_argument("--process", type=int)
    parser.add_argument("--port")
    given = parser.parse_args()
    alone = given.process is None
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 if alone else 2}"
    import jax

    if not alone:
        jax.distributed.initialize(f"localhost:{given.port}", 2, given.process)
    from mistjax.envs.board.functional import FunctionalBoard
    from mistjax.policies.load import load_policy
    from mistjax.rollouts.compiled import CompiledRollouts

    policy, board = load_policy("checkpoints/board_pi0"), FunctionalBoard()
    drawn = board.draw_starts(SEEDS)
    for grouping in given.groupings:
        devices, fsdp = map(int, grouping.split(":"))
        rollouts = CompiledRollouts(
            policy, board, num_envs=8, devices=jax.devices()[:devices], fsdp=fsdp
        )
        table = rollouts.table(SEEDS, drawn.start, drawn.prompts)
        hlo, ended = rollouts.prepare(table).compiled.as_text(), rollouts.run(table)
        shown = {
            "success": ended.success.tolist(),
            "cause": ended.cause.tolist(),
            "steps": ended.steps.tolist(),
            "talking": sorted(talking(hlo or "")),
        }
        print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
