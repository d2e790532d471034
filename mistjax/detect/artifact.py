"""A detector and its threshold on disk: `detector.safetensors` for arrays, `detector.json` for
everything else.

No pickle: the JSON names classes from a fixed list, so a file can only build what this module
allows. The fingerprints say what the detector was made with; loading it for anything else is
refused, because its scores would mean nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.methods.combinators import Agreement, Standardised, Windowed
from mistjax.detect.methods.controls import TrajectoryLength
from mistjax.detect.methods.density.density import RND, LogpZO
from mistjax.detect.methods.distance import (
    EmbeddingDetector,
    Mahalanobis,
    NearestCentroid,
    NearestNeighbours,
)
from mistjax.detect.methods.ensemble import Ensemble
from mistjax.detect.methods.fiper.fiper import ActionChunkEntropy, ObservationNovelty
from mistjax.detect.methods.linear import LinearProbe
from mistjax.detect.methods.safe.heads import SafeLSTM, SafeMLP
from mistjax.detect.methods.samples.action_samples import (
    ActionVariance,
    ChunkLayout,
    ClusterEntropy,
)
from mistjax.detect.methods.samples.consistency import TemporalConsistency
from mistjax.detect.methods.sensitivity import SensitivityGate
from mistjax.detect.methods.tokens import TokenUncertainty
from mistjax.files import load_together, read_tensors, save_together
from mistjax.untrusted import reading

CLASSES: dict[str, type] = {
    c.__name__: c
    for c in (
        ActionChunkEntropy,
        ActionVariance,
        Agreement,
        ChunkLayout,
        ClusterEntropy,
        EmbeddingDetector,
        Ensemble,
        LinearProbe,
        LogpZO,
        Mahalanobis,
        NearestCentroid,
        NearestNeighbours,
        ObservationNovelty,
        RND,
        SafeLSTM,
        SafeMLP,
        SensitivityGate,
        Standardised,
        TemporalConsistency,
        Threshold,
        TokenUncertainty,
        TrajectoryLength,
        Windowed,
    )
}

VERSION = 1
_CARD, _ARRAYS = "detector.json", "detector.safetensors"


class FingerprintError(ValueError):
    """An artifact was made with something else than it is loaded for."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a detector's features come from.

    Attributes:
        policy: fingerprint of the policy: weights, configuration, statistics and tokenizer.
        tap: where the features were read, as the tap's string form.
        pooling: how they were reduced to one vector a step.
    """

    policy: str
    tap: str
    pooling: str

    def require(self, expected: Provenance) -> None:
        """Raise FingerprintError naming every field that differs."""
        differences = [
            f"{f.name} {getattr(self, f.name)!r} (expected {getattr(expected, f.name)!r})"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != getattr(expected, f.name)
        ]
        if differences:
            raise FingerprintError(
                f"This detector was made with {', '.join(differences)}. Its scores and threshold "
                "do not apply here; "
                "train and calibrate one for this policy and tap."
            )


def _pack(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        if CLASSES.get(kind) is not type(value):
            raise TypeError(f"{kind} cannot be saved; artifacts hold {', '.join(sorted(CLASSES))}.")
        fields = {
            f.name: _pack(getattr(value, f.name), f"{name}.{f.name}", arrays)
            for f in dataclasses.fields(value)
        }
        return {"class": kind, "fields": fields}
    if isinstance(value, dict):
        return {"dict": {k: _pack(v, f"{name}.{k}", arrays) for k, v in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_pack(v, f"{name}.{i}", arrays) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    arrays[name] = np.asarray(value, order="C")
    return {"array": name}


def _unpack(spec: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(spec, dict):
        return spec
    if "array" in spec:
        return jnp.asarray(arrays[spec["array"]])
    if "tuple" in spec:
        return tuple(_unpack(v, arrays) for v in spec["tuple"])
    if "dict" in spec:
        return {k: _unpack(v, arrays) for k, v in spec["dict"].items()}
    if spec["class"] not in CLASSES:
        raise ValueError(
            f"unknown class {spec['class']!r} in artifact; known: {', '.join(sorted(CLASSES))}."
        )
    return CLASSES[spec["class"]](**{k: _unpack(v, arrays) for k, v in spec["fields"].items()})


def save_detector(
    folder: Path | str,
    detector: Any,
    provenance: Provenance,
    *,
    threshold: Threshold | Mapping[str, Threshold] | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write a detector, its threshold and what they were made with.

    Args:
        folder: created if absent.
        detector: any detector whose class is in `CLASSES`.
        provenance: fingerprints to be checked on loading.
        threshold: its calibrated threshold, or one for each stratum.
        notes: JSON values for people: data, command, scores.

    Raises:
        TypeError: a class that artifacts do not hold.
    """
    arrays: dict[str, np.ndarray] = {}
    document = {
        "version": VERSION,
        "provenance": dataclasses.asdict(provenance),
        "detector": _pack(detector, "detector", arrays),
        "threshold": _pack(threshold, "threshold", arrays),
        "notes": notes or {},
    }
    save_together(Path(folder) / _CARD, document, {_ARRAYS: save(arrays)})


def load_detector(
    folder: Path | str, expected: Provenance, stratum: str | None = None
) -> tuple[Any, Threshold | None]:
    """Read a detector and its threshold.

    Args:
        folder: what `save_detector` wrote.
        expected: what they are to be used with.
        stratum: which threshold, where there is one for each stratum.

    Raises:
        FileNotFoundError: no artifact there.
        FingerprintError: made with another policy, tap or pooling.
        ValueError: another format version, an unknown class, or not a stratum that was calibrated.
    """
    path = Path(folder) / _CARD
    document, content = _read(folder)
    arrays = read_tensors(path.with_name(_ARRAYS), content)
    with reading(path, "the card of a detector"):
        Provenance(**document["provenance"]).require(expected)
        threshold = _unpack(document["threshold"], arrays)
        detector = _unpack(document["detector"], arrays)
        strata: dict[str | None, Any] = (
            threshold if isinstance(threshold, dict) else {None: threshold}
        )
        if type(detector) not in CLASSES.values() or not all(
            isinstance(each, Threshold | None) for each in strata.values()
        ):
            raise ValueError("its detector or a threshold is something else: it is damaged.")
    if stratum not in strata:
        has = "one threshold for everything" if None in strata else f"thresholds of {[*strata]}"
        raise ValueError(f"{folder} has {has}; asked for stratum {stratum!r}.")
    return detector, strata[stratum]


def read_card(folder: Path | str) -> dict[str, Any]:
    """The artifact's JSON (version, provenance, notes, structure) without its arrays."""
    return _read(folder)[0]


def _read(folder: Path | str) -> tuple[dict[str, Any], bytes]:
    """The card, and the file of the arrays that belongs to it."""
    path = Path(folder) / _CARD
    if not path.is_file():
        raise FileNotFoundError(f"no {_CARD} in {folder}; write one with save_detector(...).")
    document, files = load_together(path, [_ARRAYS])
    if (version := document.get("version")) != VERSION:
        raise ValueError(
            f"{path} has format version {version!r:.40}; this release reads {VERSION}. Save it "
            "again."
        )
    return document, files[_ARRAYS]
