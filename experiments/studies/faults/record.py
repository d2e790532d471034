"""Records the board policy under the fault battery, with all that detectors read.

    python -m experiments.studies.faults.record
    python -m experiments.studies.faults.record --grounding --out runs/grounding --fitting 200 \
        --calibration 200 --clean 100 --mixture 30 --each 0 --purposes fitting calibration test

Episodes of each purpose have seeds of their own (`envs.faults.splits`). Interrupt it at will: what
is recorded is kept. Some 3,000 episodes; 0.1 s each on an idle core. The second call records, of
the first episodes of each part, how the policy reacts to ablations of what it read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import tyro

from mistjax.compilation import enable_cache
from mistjax.detect.inputs import DEFAULT_INPUT
from mistjax.detect.novelty.reading import FIELDS, Reads
from mistjax.envs.faults.battery import FAULTS, Mixture
from mistjax.envs.faults.make import make_faulty
from mistjax.envs.faults.splits import SEEDS, SEEN_KINDS, mixtures, strengths
from mistjax.policies.grounding import Grounded
from mistjax.policies.load import load_policy
from mistjax.rollouts.plan import BOARD_ENV
from mistjax.rollouts.run import Run
from mistjax.rollouts.runner import run_episodes

CLEAN = Mixture()
WEAK: dict[str, tuple[float, ...]] = {"state_offset": (0.1, 0.2), "state_drifting": (0.25,)}
"""Faults so weak that they may be missed: 5 mm, 1 cm; 2 mm a look."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is recorded, and how much.

    Attributes:
        policy: the bare policy.
        out: folder of the runs.
        purposes: of `PURPOSES`.
        fitting, calibration, clean: clean episodes to fit to, to calibrate on and to test on.
        tuning: episodes of each fault that may be looked at.
        each: test episodes of each fault of scene and actuators, which are in no mixture, and of
            each of `WEAK`.
        mixture: test episodes of each mixture.
        grounding: with ablations of the cache (`policies.grounding`), three times the cost of an
            inference.
    """

    policy: str = "checkpoints/board_pi0"
    out: Path = Path("runs/faults")
    purposes: tuple[str, ...] = ("fitting", "calibration", "tuning", "test")
    fitting: int = 400
    calibration: int = 600
    clean: int = 400
    tuning: int = 20
    each: int = 20
    mixture: int = 150
    grounding: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """One run: its name, its mixture and its seeds."""

    name: str
    mixture: Mixture
    seeds: range


def parts(config: Config) -> Iterator[Part]:
    """All runs, clean ones of a purpose first."""
    first = {purpose: seeds.start for purpose, seeds in SEEDS.items()}

    def block(purpose: str, number: int, episodes: int) -> range:
        start = first[purpose] + 1000 * number
        return range(start, start + episodes)

    if "fitting" in config.purposes:
        yield Part("fitting/clean", CLEAN, block("fitting", 0, config.fitting))
    if "calibration" in config.purposes:
        yield Part("calibration/clean", CLEAN, block("calibration", 0, config.calibration))
    if "tuning" in config.purposes:
        yield Part("tuning/clean", CLEAN, block("tuning", 0, 100))
        for number, name in enumerate(SEEN_KINDS, 1):
            mixture = Mixture.single(name, max(strengths(name)))
            yield Part(f"tuning/{name}", mixture, block("tuning", number, config.tuning))
    if "test" in config.purposes:
        yield Part("test/clean", CLEAN, block("test", 0, config.clean))
        for number, (name, mixture) in enumerate(mixtures().items(), 1):
            yield Part(f"test/{name}", mixture, block("test", number, config.mixture))
        for number, name in enumerate(FAULTS, 10):
            if config.each and FAULTS[name][0] in ("scene", "action"):
                seeds = block("test", number, config.each)
                yield Part(f"test/{name}", Mixture.single(name), seeds)
        weak = [(name, strength) for name, some in WEAK.items() for strength in some]
        for number, (name, strength) in enumerate(weak, 100):
            if config.each:
                seeds = block("test", number, config.each)
                mixture = Mixture.single(name, strength)
                yield Part(f"test/{name}_{strength:g}", mixture, seeds)


def record(config: Config, part: Part) -> Run:
    """One run; goes on where it stopped."""
    policy = _policy(config.policy, config.grounding)
    return run_episodes(
        policy,
        functools.partial(
            make_faulty, BOARD_ENV, part.mixture.to_json(), policy.spec.execute_steps
        ),
        part.seeds,
        out=config.out / part.name,
        taps=DEFAULT_INPUT.taps,
        aux=(*FIELDS, *policy.reports, "velocity"),
        num_envs=16,
        settings={"faults": part.mixture.to_json()},
        progress=False,
    )


@functools.cache
def _policy(source: str, grounding: bool) -> Reads:
    policy = load_policy(source)
    return Reads(Grounded(policy) if grounding else policy)


def main(config: Config) -> None:
    for part in parts(config):
        run = record(config, part)
        successes = sum(row["success"] for row in run.finished)
        print(f"{part.name}: {successes}/{len(run.finished)} succeed", flush=True)


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
