"""Remedies on disk: `repairs.json`, and `repairs.safetensors` for the imputer's arrays.

Dead reckoning takes its motion model from the monitor of inputs in the same folder; where
`reckoning.json` is beside it, the state is reckoned by sight instead. The last prompt needs
nothing; see `detect.fitted`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistjax.detect.fitted import layers_of, load_fitted, save_fitted
from mistjax.detect.novelty.monitor import InputMonitor
from mistjax.detect.novelty.motion import MotionModel
from mistjax.detect.novelty.odometry import Odometer
from mistjax.ranges import whole
from mistjax.steer.remedies.dynamics import Dynamics
from mistjax.steer.remedies.imputer import Imputer
from mistjax.steer.remedies.prompt import LastPrompt
from mistjax.steer.remedies.reckoning import DeadReckoning
from mistjax.steer.remedies.remedy import InputRemedy
from mistjax.steer.remedies.sighted import SightedReckoning
from mistjax.steer.schedules import is_strength

_NAME, _RECKONING = "repairs", "reckoning"
CARD = f"{_NAME}.json"


@dataclasses.dataclass(frozen=True)
class RepairConfig:
    """How far and how long to repair.

    Attributes:
        cap: largest change of an action, as a share of its range. At 1 an action may be any that
            the robot can do, and the bare chunk need not be drawn while an input is repaired.
        patience: consecutive inferences in which a sensor must agree with what stands in for it
            before it is trusted again.
        budget: largest number of inferences of an episode for which an input is repaired.

    Raises:
        ValueError: a setting out of range.
    """

    cap: float = 1.0
    patience: int = 2
    budget: int = 200

    def __post_init__(self):
        if not is_strength(self.cap) or not 0 <= self.cap <= 1:
            raise ValueError(f"cap is {self.cap!r}: it is a share, from 0 to 1.")
        whole("patience", self.patience, 1)
        whole("budget", self.budget, 1)


def save_repairs(
    folder: str | Path,
    imputer: Imputer,
    config: RepairConfig,
    policy: str,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes the remedies of a folder that has a monitor of inputs.

    Args:
        folder: of the monitor.
        imputer: of all cameras.
        config: how far and how long to repair.
        policy: fingerprint of the policy that was recorded.
        notes: JSON values for people.
    """
    card = {"cameras": list(imputer.cameras), "config": dataclasses.asdict(config)}
    save_fitted(folder, _NAME, imputer, policy, card, notes)


def load_repairs(
    folder: str | Path, policy: str, monitor: InputMonitor
) -> tuple[dict[str, InputRemedy], RepairConfig]:
    """(input -> remedy, how far and how long to repair).

    Raises:
        FileNotFoundError: none there.
        FingerprintError: made with another policy.
        ValueError: another format version, other cameras than the monitor's, or a damaged file.
    """
    path = Path(folder) / CARD
    document, nested = load_fitted(folder, _NAME, policy, "repairs", "mistjax fit-imputer")
    if tuple(document["cameras"]) != monitor.cameras:
        raise ValueError(
            f"{path} is of cameras {document['cameras']}, the monitor beside it of "
            f"{list(monitor.cameras)}: make it again with `mistjax fit-imputer`."
        )
    try:
        config = RepairConfig(**document["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    layers = layers_of(nested.pop("layers"))
    imputer = Imputer(**nested, layers=layers, cameras=monitor.cameras)
    return make_remedies(monitor, imputer, load_reckoning(folder, policy, monitor)), config


def make_remedies(
    monitor: InputMonitor, imputer: Imputer, state: InputRemedy | None = None
) -> dict[str, InputRemedy]:
    """The remedy of every input of a monitor; of its state dead reckoning, unless it is given."""
    return {
        **dict.fromkeys(monitor.cameras, imputer),
        "state": state or DeadReckoning(monitor.motion),
        "text": LastPrompt(monitor.words),
    }


def save_reckoning(
    folder: str | Path, remedy: SightedReckoning, policy: str, notes: Mapping[str, Any]
) -> None:
    """Writes a sighted reckoning.

    Args:
        folder: of the monitor.
        remedy: of its state.
        policy: fingerprint of the policy that was recorded.
        notes: JSON values for people.
    """
    save_fitted(
        folder, _RECKONING, remedy, policy, {"gripper": remedy.motion.linear.gripper}, notes
    )


def load_reckoning(
    folder: str | Path, policy: str, monitor: InputMonitor
) -> SightedReckoning | None:
    """What `save_reckoning` wrote; None where it wrote nothing.

    Raises:
        FingerprintError: made with another policy.
        ValueError: another format version, another number of cameras or of entries of the state
            than the monitor's, or a damaged file.
    """
    path, command = Path(folder) / f"{_RECKONING}.json", "mistjax fit-reckoning"
    if not path.exists():
        return None
    document, nested = load_fitted(folder, _RECKONING, policy, "reckons with", command)
    if "motion" not in nested:
        raise ValueError(f"{path} has no motion model of its own: make it again with `{command}`.")
    motion, odometer = nested.pop("motion"), nested.pop("odometer")
    linear = MotionModel(**motion.pop("linear"), gripper=document["gripper"])
    expected = (len(monitor.cameras), *monitor.state_mean.shape)
    if nested["noise"].shape != expected:
        raise ValueError(
            f"{path} is of {nested['noise'].shape} cameras and entries of the state, the monitor "
            f"beside it of {expected}: make it again with `{command}`."
        )
    return SightedReckoning(
        Dynamics(**{**motion, "linear": linear, "layers": layers_of(motion["layers"])}),
        Odometer(**{**odometer, "layers": layers_of(odometer["layers"])}),
        **nested,
    )
