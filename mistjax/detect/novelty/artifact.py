"""An `InputMonitor` on disk: `inputs.json`, and `inputs.safetensors` for arrays.

It was fitted to what one policy reads, and refuses to load for another; see `detect.fitted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.fitted import layers_of, load_fitted, save_fitted
from mistjax.detect.novelty.monitor import InputMonitor, Novelty
from mistjax.detect.novelty.motion import MotionModel
from mistjax.detect.novelty.odometry import Odometer

_NAME = "inputs"
CARD = f"{_NAME}.json"


def save_inputs(
    folder: str | Path, monitor: InputMonitor, policy: str, notes: Mapping[str, Any] | None = None
) -> None:
    """Writes a monitor.

    Args:
        folder: made if absent.
        monitor: fitted, calibrated or not.
        policy: fingerprint of the policy that was recorded.
        notes: JSON values for people.
    """
    threshold = monitor.threshold
    card = {
        "cameras": list(monitor.cameras),
        "gripper": monitor.motion.gripper,
        "sizes": {name: getattr(monitor, name) for name in ("execute", "tokens", "words")},
        "threshold": {
            "alpha": threshold.alpha,
            "n_calibration": threshold.n_calibration,
            "rank": threshold.rank,
            "confidence": threshold.confidence,
        },
    }
    save_fitted(folder, _NAME, monitor, policy, card, notes)


def load_inputs(folder: str | Path, policy: str) -> InputMonitor:
    """Reads a monitor.

    Raises:
        FileNotFoundError: none there.
        FingerprintError: it was made with another policy.
        ValueError: another format version, or a damaged file.
    """
    document, nested = load_fitted(folder, _NAME, policy, "watches", "mistjax fit-inputs")
    odometer = nested.pop("odometer")
    threshold = document["threshold"]
    return InputMonitor(
        motion=MotionModel(**nested.pop("motion"), gripper=document["gripper"]),
        odometer=Odometer(**{**odometer, "layers": layers_of(odometer["layers"])}),
        level=Novelty(**nested.pop("level")),
        change=Novelty(**nested.pop("change")),
        threshold=Threshold(nested.pop("threshold")["upper"], **threshold),
        cameras=tuple(document["cameras"]),
        **document["sizes"],
        **nested,
    )
