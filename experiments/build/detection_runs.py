"""Records the board episodes that detectors are compared on.

    python -m experiments.build.detection_runs

Nominal and perturbed episodes for training and for testing, on seeds of their own, with the hidden
states that a detector may read. Interrupt it at will: what is recorded is kept. About 1.5 MB an
episode.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from experiments.studies.known_change import PERTURBATION
from mistjax.compilation import enable_cache
from mistjax.demo import SHIPPED
from mistjax.hooks import Tap
from mistjax.policies.load import load_policy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.run import Run

CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
TAPS = (
    Tap("action.resid", None, "action", "mean"),
    Tap("action.resid", (-1,), "action"),
    Tap("vlm.resid", None, "image", "mean"),
    Tap("vlm.resid", None, "text", "mean"),
    Tap("vlm.resid", (-1,), "all"),
    Tap("vision.resid", None, "image", "mean"),
    *(Tap("vlm.resid", None, camera, "mean") for camera in CAMERAS),
    *(Tap("vision.resid", None, camera, "mean") for camera in CAMERAS),
)
FIRST_SEED = {"train": 6_000_000, "test": 7_000_000}
CONDITIONS = {"nominal": {}, "perturbed": PERTURBATION}
PERTURBED_OFFSET = 500_000


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is recorded.

    Attributes:
        policy: the bare policy.
        out: folder of the four runs.
        train: training episodes of each condition.
        test: test episodes of each condition.
    """

    policy: Path = SHIPPED / "board_pi0"
    out: Path = Path("runs/detection")
    train: int = 800
    test: int = 300


def record(config: Config) -> dict[str, Run]:
    """The four runs by name, such as `train_nominal`; recorded where they are not yet."""
    policy = load_policy(config.policy)
    runs = {}
    for purpose, episodes in (("train", config.train), ("test", config.test)):
        for condition, perturbation in CONDITIONS.items():
            offset = PERTURBED_OFFSET if perturbation else 0
            runs[f"{purpose}_{condition}"] = collect(
                policy,
                config.out / f"{purpose}_{condition}",
                episodes=episodes,
                first_seed=FIRST_SEED[purpose] + offset,
                perturbation=perturbation,
                taps=TAPS,
                aux=("velocity",),
                num_envs=16,
            )
    return runs


if __name__ == "__main__":
    enable_cache()
    for name, run in record(tyro.cli(Config)).items():
        print(name, len(run.finished))
