"""An `InputMonitor` on disk: `inputs.json`, and `inputs.safetensors` for arrays.

It was fitted to what one policy reads, and refuses to load for another. Networks and principal
components are kept in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from mistjax.detect.artifact import FingerprintError
from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.novelty.monitor import InputMonitor, Novelty
from mistjax.detect.novelty.motion import MotionModel
from mistjax.detect.novelty.odometry import Odometer
from mistjax.files import load_together, read_tensors, save_together

VERSION = 1
CARD, ARRAYS = "inputs.json", "inputs.safetensors"
_HALF = ("directions", "layers")


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
    flat = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(monitor), sep="/")
    arrays = {
        name: np.ascontiguousarray(
            np.asarray(value, np.float16)
            if any(part in _HALF for part in name.split("/"))
            else np.asarray(value)
        )
        for name, value in flat.items()
    }
    threshold = monitor.threshold
    document = {
        "version": VERSION,
        "policy": policy,
        "cameras": list(monitor.cameras),
        "gripper": monitor.motion.gripper,
        "sizes": {name: getattr(monitor, name) for name in ("execute", "tokens", "words")},
        "threshold": {
            "alpha": threshold.alpha,
            "n_calibration": threshold.n_calibration,
            "rank": threshold.rank,
            "confidence": threshold.confidence,
        },
        "notes": dict(notes or {}),
    }
    save_together(Path(folder) / CARD, document, {ARRAYS: save(arrays)})


def load_inputs(folder: str | Path, policy: str) -> InputMonitor:
    """Reads a monitor.

    Raises:
        FileNotFoundError: none there.
        FingerprintError: it was made with another policy.
        ValueError: another format version, or a damaged file.
    """
    path = Path(folder) / CARD
    if not path.is_file():
        raise FileNotFoundError(f"no {CARD} in {folder}; write one with `mistjax fit-inputs`.")
    document, files = load_together(path, [ARRAYS])
    if document["version"] != VERSION:
        raise ValueError(
            f"{path} has format version {document['version']}; this release reads {VERSION}. Make "
            "it again with `mistjax fit-inputs`."
        )
    if document["policy"] != policy:
        raise FingerprintError(
            f"{path} watches the inputs of policy {document['policy'][:12]}, not of {policy[:12]}: "
            "fit one to runs of this policy with `mistjax fit-inputs`."
        )
    arrays = read_tensors(Path(folder) / ARRAYS, files[ARRAYS])
    single = {
        name: jnp.asarray(value.astype(np.float32) if value.dtype == np.float16 else value)
        for name, value in arrays.items()
    }
    nested: dict[str, Any] = flax.traverse_util.unflatten_dict(single, sep="/")
    odometer = nested.pop("odometer")
    layers = [odometer["layers"][str(i)] for i in range(len(odometer["layers"]))]
    threshold = document["threshold"]
    return InputMonitor(
        motion=MotionModel(**nested.pop("motion"), gripper=document["gripper"]),
        odometer=Odometer(
            **{**odometer, "layers": tuple((layer["0"], layer["1"]) for layer in layers)}
        ),
        level=Novelty(**nested.pop("level")),
        change=Novelty(**nested.pop("change")),
        threshold=Threshold(nested.pop("threshold")["upper"], **threshold),
        cameras=tuple(document["cameras"]),
        **document["sizes"],
        **nested,
    )
