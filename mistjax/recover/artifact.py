"""A monitor and its remedy on disk.

    <folder>/detector.{json,safetensors}   detector and threshold, see `detect.artifact`
    <folder>/steering.{json,safetensors}   directions and causes, see `steer.artifact`
    <folder>/remedy.json                   how far and how long to steer: `RemedyConfig`
    <folder>/inputs.{json,safetensors}     monitor of the inputs, see `detect.novelty`; optional
    <folder>/repairs.{json,safetensors}    their remedies, see `steer.remedies`; optional

All of it was made with one policy and refuses to load for another.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mistjax.attribute.registry import ATTRIBUTIONS, current
from mistjax.detect.artifact import load_calibrated
from mistjax.detect.monitor import Monitor
from mistjax.detect.novelty.artifact import CARD as INPUTS
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.files import read_json, save_together
from mistjax.policies.protocol import Policy
from mistjax.policies.wrapper import seeing
from mistjax.recover.decision import DECISIONS, Decision
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.mist import MistPolicy, Remedy
from mistjax.recover.repaired import Repaired
from mistjax.recover.watched import Watched
from mistjax.steer.artifact import SteeringArtifact, load_steering
from mistjax.steer.remedies.artifact import CARD as REPAIRS
from mistjax.steer.remedies.artifact import load_repairs
from mistjax.steer.schedules import Schedule, is_strength

_REMEDY = "remedy.json"
ARMS = ("monitor", "random", "mist")
LOADABLE = tuple(dict.fromkeys((*ARMS, *(n for n, rule in DECISIONS.items() if not rule.scripted))))


@dataclasses.dataclass(frozen=True)
class RemedyConfig:
    """How far and how long to steer.

    Attributes:
        strengths: share of the recommended strength at each inference since the alarm; the last
            one holds. When it is 0, the next alarm begins anew.
        cap: largest change of an action, as a share of its range.
        weight: share of the steered chunk in the fused one.
        method: attribution that finds the cause.

    Raises:
        ValueError: a setting out of range.
    """

    strengths: tuple[float, ...] = (1.0,)
    cap: float = 0.25
    weight: float = 1.0
    method: str = "gradient_x_input"

    def __post_init__(self):
        for name in ("cap", "weight"):
            value = getattr(self, name)
            if not is_strength(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} is {value!r}: it is a share, from 0 to 1.")
        if not self.strengths or not all(is_strength(s) and s >= 0 for s in self.strengths):
            raise ValueError(
                f"strengths are {self.strengths}: expected at least one, each a share of the "
                "recommended strength, 0 or more."
            )
        if current(self.method) not in ATTRIBUTIONS:
            raise ValueError(
                f"method is {self.method!r}: expected one of {', '.join(ATTRIBUTIONS)}."
            )


def save_remedy(folder: str | Path, config: RemedyConfig) -> None:
    """Writes `remedy.json` beside the directions that it is for.

    Raises:
        FileNotFoundError: no directions there.
    """
    if not (Path(folder) / "steering.json").is_file():
        raise FileNotFoundError(
            f"no steering.json in {folder}: a remedy steers along the directions of its folder; "
            "write them with `mistjax vectors`."
        )
    save_together(Path(folder) / _REMEDY, dataclasses.asdict(config))


def load_remedy(folder: str | Path) -> RemedyConfig:
    """Reads `remedy.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: unknown or missing keys, or a setting out of range; names the file.
    """
    path = Path(folder) / _REMEDY
    if not path.exists():
        raise FileNotFoundError(f"no {_REMEDY} in {folder}; write one with `mistjax remedy`.")
    data = read_json(path)
    known = {field.name for field in dataclasses.fields(RemedyConfig)}
    if surplus := sorted(set(data) ^ known):
        raise ValueError(f"{path} has other keys than {sorted(known)}: {surplus}.")
    try:
        return RemedyConfig(**{**data, "strengths": tuple(data["strengths"])})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def load_monitor(folder: str | Path, policy: Policy, stratum: str | None = None) -> Monitor:
    """The monitor of a policy, with the threshold of a stratum where it has several.

    Raises:
        FileNotFoundError: no detector there.
        FingerprintError: it was made with another policy.
        ValueError: the detector has no threshold yet, or none of that stratum.
    """
    found, threshold = load_calibrated(folder, policy.spec.fingerprint, stratum)
    return Monitor(found.detector, threshold, found.reads)


def make_remedy(policy: Policy, steering: SteeringArtifact, config: RemedyConfig) -> Remedy:
    """A remedy from directions and settings.

    Raises:
        ValueError: a cause that is not an input of the policy, or see `SteeringArtifact.table`.
    """
    inputs = (*policy.spec.cameras, "text", "state")
    if unknown := sorted(set(steering.causes) - set(inputs)):
        raise ValueError(
            f"causes {unknown} are not inputs of {policy.spec.name!r}: it has {inputs}."
        )
    return Remedy(
        steering.table(),
        Schedule.of(config.strengths),
        FusionLimits.of(policy.spec, config.cap, policy.chunk_width),
        config.weight,
        config.method,
        policy.patch,
    )


def load_repaired(
    folder: str | Path,
    policy: Policy,
    decision: Decision,
    *,
    around: Any = None,
    name: str = "mist",
) -> Repaired:
    """A policy whose unsound inputs are repaired, by any decision.

    Args:
        folder: see the module; with a monitor of inputs and their remedies.
        policy: what it was made with.
        decision: see `recover.decision`.
        around: what acts, where it is not `policy` itself: a `MistPolicy` around it.
        name: for tables.

    Raises:
        FileNotFoundError: a file is missing.
        FingerprintError: made with another policy.
        ValueError: a policy that cannot repair its inputs.
    """
    seeing(policy)
    inputs = load_inputs(folder, policy.spec.fingerprint)
    remedies, config = load_repairs(folder, policy.spec.fingerprint, inputs)
    limits = FusionLimits.of(policy.spec, config.cap, policy.chunk_width)
    around = policy if around is None else around
    return Repaired(around, inputs, remedies, limits, config, decision, name)


def load_mist(
    folder: str | Path,
    policy: Policy,
    arm: str = "mist",
    seed: int = 0,
    *,
    stratum: str | None = None,
) -> Any:
    """A policy with the monitor, and the remedy of an arm; `Watched` where the folder also has a
    monitor of its inputs. With that alone, the arm `monitor` watches the inputs only.

    With remedies of the inputs, the arm is also one of `DECISIONS` that need no script; `random` is
    then `random_direction`, and a monitor of failures without a remedy of its own only watches.

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
    if arm not in LOADABLE:
        raise ValueError(f"no arm is called {arm!r}; choose one of {', '.join(LOADABLE)}.")
    folder = Path(folder)
    repairs = (folder / REPAIRS).exists()
    if arm not in ARMS and not repairs:
        raise FileNotFoundError(
            f"no {REPAIRS} in {folder}, which arm {arm!r} needs; write one with "
            "`mistjax fit-imputer`."
        )
    if not (folder / INPUTS).exists():
        return _failure_mist(folder, policy, arm, seed, stratum)
    inputs = load_inputs(folder, policy.spec.fingerprint)
    inside = policy
    if (folder / "detector.json").exists():
        steers = not repairs or any((folder / n).exists() for n in (_REMEDY, "steering.json"))
        failing = "monitor" if not steers else arm if arm in ARMS else "mist"
        inside = _failure_mist(folder, policy, failing, seed, stratum)
    elif not repairs and arm != "monitor":
        raise FileNotFoundError(f"no detector.json in {folder}, which arm {arm!r} needs.")
    if arm == "monitor" or not repairs:
        return Watched(inside, inputs)
    decision = DECISIONS["random_direction" if arm == "random" else arm]
    return load_repaired(folder, policy, decision, around=inside, name=arm)


def _failure_mist(
    folder: str | Path, policy: Policy, arm: str, seed: int, stratum: str | None
) -> MistPolicy:
    monitor = load_monitor(folder, policy, stratum)
    if arm == "monitor":
        return MistPolicy(policy, monitor, None, arm)
    steering = load_steering(folder, policy.spec)
    if arm == "random":
        steering = steering.random(seed)
    return MistPolicy(policy, monitor, make_remedy(policy, steering, load_remedy(folder)), arm)
