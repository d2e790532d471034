"""A detector and its threshold on disk: `detector.safetensors` for arrays, `detector.json` for
everything else.

No pickle: the JSON names classes from a fixed list, so a file can only build what this module
allows. The card says once what the detector reads, and for which policy; loading it for another one
is refused, because its scores would mean nothing.
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
from mistjax.detect.inputs import ChunkLayout, Input, is_tap
from mistjax.detect.methods.combinators import Agreement, Pooled, Standardised, Windowed
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
from mistjax.detect.methods.samples.action_samples import ActionVariance, ClusterEntropy
from mistjax.detect.methods.samples.consistency import TemporalConsistency
from mistjax.detect.methods.samples.flow import VelocityDisagreement
from mistjax.detect.methods.sensitivity import SensitivityGate
from mistjax.detect.methods.sparse import SparseCoded, SparseCoder
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
        Pooled,
        RND,
        SafeLSTM,
        SafeMLP,
        SensitivityGate,
        SparseCoded,
        SparseCoder,
        Standardised,
        TemporalConsistency,
        Threshold,
        TokenUncertainty,
        TrajectoryLength,
        VelocityDisagreement,
        Windowed,
    )
}

VERSION = 2
_CARD, _ARRAYS = "detector.json", "detector.safetensors"
_RETIRED = {"ActionVariance": {"official": False}}
"""Class -> fields that it no longer has, and the value that changes nothing."""


class FingerprintError(ValueError):
    """An artifact was made with something other than what it is loaded for."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A detector as it was saved.

    Attributes:
        detector: any detector whose class is in `CLASSES`.
        policy: fingerprint of the policy it was made with: weights, configuration, statistics and
            tokenizer.
        reads: what it reads.
        name: key of `DETECTORS`; "" where it is not known.
        threshold: its calibrated threshold, or one for each stratum; None before calibration.
        training, calibration: what it was fitted to and calibrated on, JSON values; see
            `from_runs`.
        notes: JSON values for people.
    """

    detector: Any
    policy: str
    reads: Input
    name: str = ""
    threshold: Threshold | Mapping[str, Threshold] | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def threshold_of(self, stratum: str | None = None) -> Threshold:
        """The threshold of a stratum, or the only one.

        Raises:
            ValueError: none yet, or none of that stratum.
        """
        if self.threshold is None:
            raise ValueError(
                "the detector has no threshold yet: run `mistjax calibrate` on it first."
            )
        strata: Mapping[Any, Any] = {None: self.threshold}
        if isinstance(self.threshold, Mapping):
            strata = self.threshold
        if stratum not in strata:
            has = "one threshold for everything" if None in strata else f"those of {[*strata]}"
            raise ValueError(f"the detector has {has}; asked for stratum {stratum!r}.")
        return strata[stratum]


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
    kind, fields = spec["class"], {k: _unpack(v, arrays) for k, v in spec["fields"].items()}
    if kind not in CLASSES:
        raise ValueError(
            f"unknown class {kind!r} in artifact; known: {', '.join(sorted(CLASSES))}."
        )
    for name, neutral in _RETIRED.get(kind, {}).items():
        if fields.pop(name, neutral) != neutral:
            raise ValueError(f"{kind} with another {name} is gone: train the detector again.")
    try:
        return CLASSES[kind](**fields)
    except TypeError as error:
        raise ValueError(f"the fields of {kind} in the artifact do not fit: {error}.") from None


def save_detector(folder: Path | str, artifact: Artifact) -> None:
    """Write a detector, its threshold and what they were made with; the folder is made.

    Raises:
        TypeError: a class that artifacts do not hold.
        ValueError: a value without a JSON form.
    """
    arrays: dict[str, np.ndarray] = {}
    document = {
        "version": VERSION,
        "policy": artifact.policy,
        "name": artifact.name,
        "reads": artifact.reads.to_json(),
        "detector": _pack(artifact.detector, "detector", arrays),
        "threshold": _pack(artifact.threshold, "threshold", arrays),
        "training": dict(artifact.training),
        "calibration": dict(artifact.calibration),
        "notes": dict(artifact.notes),
    }
    save_together(Path(folder) / _CARD, document, {_ARRAYS: save(arrays)})


def load_detector(folder: Path | str, policy: str, reads: Input | None = None) -> Artifact:
    """Read a detector and its threshold.

    Args:
        folder: what `save_detector` wrote.
        policy: fingerprint of what it is to be used with.
        reads: what it is expected to read; None takes what it says.

    Raises:
        FileNotFoundError: no artifact there.
        FingerprintError: made with another policy, or reads something else.
        ValueError: another format version, an unknown class, or an array with NaN.
    """
    path = Path(folder) / _CARD
    document, content = _read(folder)
    with reading(path, "the card of a detector"):
        found = Input.from_json(document["reads"])
        wrong = [
            f"{name} {had!r} (expected {wanted!r})"
            for name, had, wanted in (
                ("policy", document["policy"], policy),
                ("reads", found.to_json(), (reads or found).to_json()),
            )
            if had != wanted
        ]
        if wrong:
            raise FingerprintError(
                f"This detector was made with {', '.join(wrong)}. Its scores and threshold do not "
                "apply here; train and calibrate one for this policy."
            )
        arrays = read_tensors(path.with_name(_ARRAYS), content)
        for name, array in arrays.items():
            # a threshold that promises too much is +inf
            sound = ~np.isnan(array) if name.startswith("threshold") else np.isfinite(array)
            if not sound.all():
                raise ValueError(
                    f"{folder}: {name} holds {(~sound).sum()} numbers that are not finite; train "
                    "and calibrate the detector again."
                )
        detector = _unpack(document["detector"], arrays)
        threshold = _unpack(document["threshold"], arrays)
        strata = threshold.values() if isinstance(threshold, dict) else [threshold]
        if type(detector) not in CLASSES.values() or not all(
            isinstance(each, Threshold | None) for each in strata
        ):
            raise ValueError("its detector or a threshold is something else: it is damaged.")
        return Artifact(
            detector,
            document["policy"],
            found,
            document["name"],
            threshold,
            document["training"],
            document["calibration"],
            document["notes"],
        )


def load_calibrated(
    folder: Path | str, policy: str, stratum: str | None = None
) -> tuple[Artifact, Threshold]:
    """`load_detector`, and the threshold of a stratum where it has several.

    Raises:
        ValueError: it has no threshold yet, or none of that stratum; see `load_detector`.
    """
    found = load_detector(folder, policy)
    try:
        return found, found.threshold_of(stratum)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def read_card(folder: Path | str) -> dict[str, Any]:
    """The artifact's JSON, of an older format as of this one, without its arrays."""
    return _read(folder)[0]


def _read(folder: Path | str) -> tuple[dict[str, Any], bytes]:
    """The card, and the file of the arrays that belongs to it."""
    path = Path(folder) / _CARD
    if not path.is_file():
        raise FileNotFoundError(
            f"no {_CARD} in {folder}; `mistjax train-detector` writes one, as save_detector does."
        )
    document, files = load_together(path, [_ARRAYS])
    if (version := document.get("version")) not in (1, VERSION):
        raise ValueError(
            f"{path} has format version {version!r:.40}; this release reads up to "
            f"{VERSION}. Make it again with `mistjax train-detector` and `mistjax calibrate`."
        )
    if version == 1:
        with reading(path, "the card of a detector"):
            document = _of_version_1(document, path)
    return document, files[_ARRAYS]


def _of_version_1(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """A card of format 1, in the current format."""
    made_with, notes = document["provenance"], dict(document["notes"])
    taps = {"taps": made_with["tap"].split(" + "), "steps": made_with["pooling"]}
    reads = notes.pop("features", taps)
    if not all(map(is_tap, reads["taps"])):
        raise ValueError(
            f"{path} is of an older release and does not say what its detector reads: make it "
            "again with `mistjax train-detector` and `mistjax calibrate`."
        )
    old = {
        "training": {
            "trained_on": "runs",
            "episodes": "episodes",
            "failures": "failures",
            "training_metrics": "metrics",
        },
        "calibration": {
            "calibrated_on": "runs",
            "calibration_episodes": "episodes",
            "calibration_metrics": "metrics",
            "calibration_excess": "excess",
        },
    }
    parts = {
        part: {new: notes.pop(name) for name, new in names.items() if name in notes}
        for part, names in old.items()
    }
    return {
        "version": VERSION,
        "policy": made_with["policy"],
        "name": notes.pop("detector", ""),
        "reads": Input.from_json(reads).to_json(),
        "detector": document["detector"],
        "threshold": document["threshold"],
        **parts,
        "notes": notes,
    }
