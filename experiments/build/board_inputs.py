"""Builds the shipped monitor of the board policy's inputs.

    python -m experiments.studies.faults.record --purposes fitting calibration
    python -m experiments.build.board_inputs

Fitted to clean episodes with sensor noise and calibrated on others, on seeds of their own
(`envs.faults.splits`). Nothing is fitted to a fault.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.detect.novelty.build import build_inputs
from mistjax.detect.novelty.monitor import InputMonitor
from mistjax.policies.load import load_policy
from mistjax.rollouts.run import load_run


@dataclasses.dataclass(frozen=True)
class Config:
    """What it is made from.

    Attributes:
        policy: the bare policy.
        runs: what `experiments.studies.faults.record` wrote.
        out: artefact folder.
        alpha: bound on the chance of any alarm in a clean episode.
        confidence: share of calibrations for which the bound holds.
    """

    policy: Path = SHIPPED / "board_pi0"
    runs: Path = Path("runs/faults")
    out: Path = SHIPPED / "board_mist"
    alpha: float = 0.1
    confidence: float = 0.95


def main(config: Config) -> InputMonitor:
    """Fits, calibrates and saves."""
    runs = [load_run(config.runs / name / "clean") for name in ("fitting", "calibration")]
    return build_inputs(
        load_policy(config.policy),
        runs[:1],
        runs[1:],
        config.out,
        alpha=config.alpha,
        confidence=config.confidence,
        components=128,
        hidden=(256, 128),
    )


if __name__ == "__main__":
    enable_cache()
    print(main(tyro.cli(Config)).threshold.describe("clean"))
