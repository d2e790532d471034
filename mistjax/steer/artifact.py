"""Steering directions on disk: `steering.safetensors` for arrays, `steering.json` for the rest.

A direction means something for the policy that it was made with and for no other, so a file
refuses to load for another fingerprint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from mistjax.detect.artifact import FingerprintError
from mistjax.files import load_together, read_tensors, save_together
from mistjax.hooks.sites import split_site
from mistjax.policies.protocol import PolicySpec
from mistjax.steer.affine import AffineMap
from mistjax.steer.table import CauseTable, Steering, cause_table
from mistjax.steer.vectors import NeuronOverwrite, Provenance, SteeringVector

VERSION = 1
_CARD, _ARRAYS = "steering.json", "steering.safetensors"
_KINDS: dict[str, tuple[type, tuple[str, ...]]] = {
    "SteeringVector": (SteeringVector, ("direction", "scale", "gate")),
    "AffineMap": (AffineMap, ("weight", "bias", "gate")),
    "NeuronOverwrite": (NeuronOverwrite, ("mask", "value", "gate")),
}


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringArtifact:
    """Directions of one policy and what to use them for.

    Attributes:
        policy: the policy's fingerprint.
        directions: by name.
        causes: cause -> (direction, recommended strength), or None where nothing is done.
        notes: JSON values for people: data, command, measured effects.
    """

    policy: str
    directions: Mapping[str, Steering]
    causes: Mapping[str, tuple[str, float] | None] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def table(self) -> CauseTable:
        """The causes' directions, stacked; ValueError when there is no cause or kinds are mixed."""
        used = {cause[0] for cause in self.causes.values() if cause is not None}
        chosen = {name: d for name, d in self.directions.items() if name in used}
        return cause_table(chosen, self.causes)

    def random(self, seed: int = 0) -> SteeringArtifact:
        """The same artifact with every direction replaced by a random one of its size."""
        keys = jax.random.split(jax.random.key(seed), len(self.directions))
        controls: dict[str, Steering] = {}
        for key, (name, direction) in zip(keys, self.directions.items(), strict=True):
            if isinstance(direction, NeuronOverwrite):
                raise ValueError(
                    f"{name!r} overwrites neurons: make its control with control_neurons(...)."
                )
            controls[name] = direction.control(key)
        return dataclasses.replace(self, directions=controls)


def save_steering(folder: str | Path, artifact: SteeringArtifact) -> None:
    """Writes an artifact, replacing one that is there.

    Raises:
        ValueError: a direction that was made with another policy than the artifact's, or notes
            without a JSON form.
    """
    for name, direction in artifact.directions.items():
        if direction.provenance.policy != artifact.policy:
            raise ValueError(
                f"direction {name!r} was made with policy {direction.provenance.policy[:12]}, the "
                f"artifact is of {artifact.policy[:12]}: keep one artifact per policy."
            )
    arrays, directions = {}, {}
    for name, direction in artifact.directions.items():
        kind = type(direction).__name__
        for field in _KINDS[kind][1]:
            arrays[f"{name}/{field}"] = np.asarray(getattr(direction, field), np.float32)
        directions[name] = {
            "kind": kind,
            "site": direction.site,
            "tokens": direction.tokens,
            "provenance": dataclasses.asdict(direction.provenance),
        }
    document = {
        "version": VERSION,
        "policy": artifact.policy,
        "directions": directions,
        "causes": dict(artifact.causes),
        "notes": dict(artifact.notes),
    }
    save_together(Path(folder) / _CARD, document, {_ARRAYS: save(arrays)})


def load_steering(folder: str | Path, spec: PolicySpec) -> SteeringArtifact:
    """Reads an artifact for a policy.

    Raises:
        FileNotFoundError: no artifact there.
        FingerprintError: made with another policy.
        ValueError: another format version, or arrays that do not fit the policy's stacks.
    """
    folder = Path(folder)
    if not (folder / _CARD).is_file():
        raise FileNotFoundError(f"no {_CARD} in {folder}: write one with save_steering(...).")
    document, files = load_together(folder / _CARD, [_ARRAYS])
    if document["version"] != VERSION:
        raise ValueError(
            f"{folder} has steering format {document['version']}, this release reads {VERSION}: "
            "build the vectors again."
        )
    if document["policy"] != spec.fingerprint:
        raise FingerprintError(
            f"{folder} holds steering vectors of policy {document['policy'][:12]}, not of "
            f"{spec.name!r} ({spec.fingerprint[:12]}): build them for this policy with "
            "`mistjax vectors`."
        )
    arrays = read_tensors(folder / _ARRAYS, files[_ARRAYS])
    directions = {
        name: _read(name, entry, arrays, spec) for name, entry in document["directions"].items()
    }
    causes = {
        cause: None if chosen is None else (chosen[0], float(chosen[1]))
        for cause, chosen in document["causes"].items()
    }
    return SteeringArtifact(document["policy"], directions, causes, document["notes"])


def _read(name: str, entry: Mapping[str, Any], arrays, spec: PolicySpec) -> Steering:
    if entry["kind"] not in _KINDS:
        raise ValueError(f"direction {name!r} is a {entry['kind']!r}: expected {sorted(_KINDS)}.")
    kind, fields = _KINDS[entry["kind"]]
    stack, _ = split_site(entry["site"])
    sizes = spec.stacks[stack]
    row = {
        SteeringVector: (sizes.width,),
        NeuronOverwrite: (sizes.neurons,),
        AffineMap: (sizes.width, sizes.width),
    }[kind]
    found = arrays[f"{name}/{fields[0]}"].shape
    if found != (sizes.depth, *row):
        raise ValueError(
            f"direction {name!r} has shape {found}; {entry['site']!r} of this policy needs "
            f"{(sizes.depth, *row)}."
        )
    return kind(
        site=entry["site"],
        tokens=entry["tokens"],
        provenance=Provenance(**entry["provenance"]),
        **{field: jnp.asarray(arrays[f"{name}/{field}"]) for field in fields},
    )
