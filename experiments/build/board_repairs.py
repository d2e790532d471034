"""Builds what stands in for the board policy's unsound inputs.

    python -m experiments.studies.faults.record --purposes fitting calibration
    python -m experiments.build.board_inputs
    python -m experiments.build.board_repairs

Fitted to the clean episodes with sensor noise that the monitor of inputs was fitted to. Nothing is
fitted to a fault. Some 70 s on one core.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.policies.load import load_policy
from mistjax.rollouts.run import load_run
from mistjax.steer.remedies.build import build_imputer
from mistjax.steer.remedies.fit_imputer import Unexplained


@dataclasses.dataclass(frozen=True)
class Config:
    """What it is made from.

    Attributes:
        policy: the bare policy.
        runs: what `experiments.studies.faults.record` wrote.
        out: artefact folder, with the monitor of inputs.
        steps: of training.
    """

    policy: Path = SHIPPED / "board_pi0"
    runs: Path = Path("runs/faults")
    out: Path = SHIPPED / "board_mist"
    steps: int = 2000


def main(config: Config) -> tuple[Unexplained, ...]:
    """Fits and saves."""
    run = load_run(config.runs / "fitting" / "clean")
    return build_imputer(load_policy(config.policy), [run], config.out, steps=config.steps)


if __name__ == "__main__":
    enable_cache()
    print(*main(tyro.cli(Config)), sep="\n")
