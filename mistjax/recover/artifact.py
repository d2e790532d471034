"""A monitor and its remedy on disk.

    <folder>/detector.{json,safetensors}   detector and threshold, see `detect.artifact`
    <folder>/steering.{json,safetensors}   directions and causes, see `steer.artifact`
    <folder>/remedy.json                   how far and how long to steer: `RemedyConfig`

All of it was made with one policy and refuses to load for another.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from mistjax.attribute.registry import ATTRIBUTIONS
from mistjax.detect.artifact import load_detector, read_card
from mistjax.detect.features import FeatureSpec
from mistjax.detect.from_runs import provenance
from mistjax.detect.monitor import Monitor
from mistjax.files import read_json, save_together
from mistjax.policies.protocol import Policy
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.mist import MistPolicy, Remedy
from mistjax.steer.artifact import SteeringArtifact, load_steering
from mistjax.steer.schedules import Schedule

ARMS = ("monitor", "random", "mist")


@dataclasses.dataclass(frozen=True)
class RemedyConfig:
    """How far and how long to steer.

    Attributes:
        strengths: share of the recommended strength at each inference since the alarm; the last
            one holds. When it is 0, the next alarm begins anew.
        cap: largest change of an action, as a share of its range.
        weight: share of the steered chunk in the fused one.
        method: attribution that finds the cause.
    """

    strengths: tuple[float, ...] = (1.0,)
    cap: float = 0.25
    weight: float = 1.0
    method: str = "gradient_x_input"


def save_remedy(folder: str | Path, config: RemedyConfig) -> None:
    """Writes `remedy.json`.

    Raises:
        ValueError: a setting that no remedy can have.
    """
    for name, value in (("cap", config.cap), ("weight", config.weight)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}: it is a share, from 0 to 1.")
    if not config.strengths or config.method not in ATTRIBUTIONS:
        raise ValueError(
            f"strengths are {config.strengths} and the method is {config.method!r}: give at least "
            f"one strength, and one of {', '.join(ATTRIBUTIONS)}."
        )
    save_together(Path(folder) / "remedy.json", dataclasses.asdict(config))


def load_remedy(folder: str | Path) -> RemedyConfig:
    """Reads `remedy.json`; ValueError names keys that a remedy does not have."""
    path = Path(folder) / "remedy.json"
    if not path.exists():
        raise FileNotFoundError(f"no remedy.json in {folder}; write one with `mistjax remedy`.")
    data = read_json(path)
    known = {field.name for field in dataclasses.fields(RemedyConfig)}
    if surplus := sorted(set(data) - known):
        raise ValueError(
            f"{folder}/remedy.json has unknown keys {surplus}; known: {sorted(known)}."
        )
    return RemedyConfig(**{**data, "strengths": tuple(data["strengths"])})


def load_monitor(folder: str | Path, policy: Policy, stratum: str | None = None) -> Monitor:
    """The monitor of a policy, with the threshold of a stratum where it has several.

    Raises:
        FileNotFoundError: no detector there.
        FingerprintError: it was made with another policy.
        ValueError: the detector has no threshold yet, or none of that stratum.
    """
    features = FeatureSpec.from_json(read_card(folder)["notes"]["features"])
    made_with = provenance(policy.spec.fingerprint, features)
    detector, threshold = load_detector(folder, made_with, stratum)
    if threshold is None:
        raise ValueError(f"{folder} has no threshold: run `mistjax calibrate` on it first.")
    return Monitor(detector, threshold, features)


def make_remedy(policy: Policy, steering: SteeringArtifact, config: RemedyConfig) -> Remedy:
    """A remedy from directions and settings."""
    return Remedy(
        steering.table(),
        Schedule(jnp.array(config.strengths, jnp.float32)),
        FusionLimits.of(policy.spec, config.cap, policy.chunk_width),
        config.weight,
        config.method,
        policy.patch,
    )


def load_mist(
    folder: str | Path,
    policy: Policy,
    arm: str = "mist",
    seed: int = 0,
    *,
    stratum: str | None = None,
) -> MistPolicy:
    """A policy with the monitor, and the remedy of an arm.

    Args:
        folder: see the module.
        policy: what it was made with.
        arm: `mist`; `monitor` only watches; `random` steers along random directions of the same
            length at the same moments.
        seed: of the random directions.
        stratum: which threshold, where it has several.

    Raises:
        FileNotFoundError: a file is missing.
        FingerprintError: made with another policy.
        ValueError: unknown arm or stratum.
    """
    if arm not in ARMS:
        raise ValueError(f"no arm is called {arm!r}; choose one of {', '.join(ARMS)}.")
    monitor = load_monitor(folder, policy, stratum)
    if arm == "monitor":
        return MistPolicy(policy, monitor, None, arm)
    steering = load_steering(folder, policy.spec)
    if arm == "random":
        steering = steering.random(seed)
    return MistPolicy(policy, monitor, make_remedy(policy, steering, load_remedy(folder)), arm)
