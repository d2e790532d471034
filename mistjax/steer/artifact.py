"""Steering directions on disk: `steering.safetensors` for arrays, `steering.json` for the rest.

A direction means something for the policy that it was made with and for no other, so a file
refuses to load for another fingerprint. Every array is finite and as large as the policy's stack.
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
from mistjax.policies.protocol import PolicySpec, StackSpec
from mistjax.steer.affine import AffineMap
from mistjax.steer.schedules import is_strength
from mistjax.steer.table import CauseTable, Steering, cause_table
from mistjax.steer.vectors import NeuronOverwrite, Provenance, SteeringVector

VERSION = 1
_CARD, _ARRAYS = "steering.json", "steering.safetensors"
_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (SteeringVector, AffineMap, NeuronOverwrite)
}
_ADDED = ("resid", "attn_out", "mlp_out")  # points as wide as the stack


def _shapes(kind: type, sizes: StackSpec) -> dict[str, tuple[int, ...]]:
    """Shape of each array of a direction in a stack."""
    layers, width, neurons = sizes.depth, sizes.width, sizes.neurons
    own: dict[str, tuple[int, ...]] = {
        SteeringVector: {"direction": (layers, width), "scale": (layers,)},
        AffineMap: {"weight": (layers, width, width), "bias": (layers, width)},
        NeuronOverwrite: {"mask": (layers, neurons), "value": (layers, neurons)},
    }[kind]
    return {**own, "gate": (layers,)}


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
        ValueError: a direction that was made with another policy than the artifact's or holds a
            number that is not finite, a cause that does not fit, or notes without a JSON form.
    """
    _check_causes(artifact.causes, artifact.directions)
    for name, direction in artifact.directions.items():
        if direction.provenance.policy != artifact.policy:
            raise ValueError(
                f"direction {name!r} was made with policy {direction.provenance.policy[:12]}, the "
                f"artifact is of {artifact.policy[:12]}: keep one artifact per policy."
            )
    arrays, directions = {}, {}
    for name, direction in artifact.directions.items():
        kind = type(direction).__name__
        for field in dataclasses.fields(direction):
            if isinstance(value := getattr(direction, field.name), jax.Array | np.ndarray):
                arrays[f"{name}/{field.name}"] = _finite(name, field.name, value)
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
        ValueError: another format version, a damaged file, or arrays that do not fit the policy's
            stacks or are not finite; names the file.
    """
    path = Path(folder) / _CARD
    if not path.is_file():
        raise FileNotFoundError(f"no {_CARD} in {folder}: write one with `mistjax vectors`.")
    document, files = load_together(path, [_ARRAYS])
    version, policy = document.get("version"), document.get("policy")
    if version != VERSION:
        raise ValueError(
            f"{folder} has steering format {version}, this release reads {VERSION}: "
            "build the vectors again."
        )
    if policy != spec.fingerprint:
        raise FingerprintError(
            f"{folder} holds steering vectors of policy {str(policy)[:12]}, not of "
            f"{spec.name!r} ({spec.fingerprint[:12]}): build them for this policy with "
            "`mistjax vectors`."
        )
    arrays = read_tensors(path.with_name(_ARRAYS), files[_ARRAYS])
    try:
        entries, causes, notes = (document[key] for key in ("directions", "causes", "notes"))
        directions = {name: _read(name, entry, arrays, spec) for name, entry in entries.items()}
        _check_causes(causes, directions)
        chosen = {cause: None if c is None else (c[0], float(c[1])) for cause, c in causes.items()}
        return SteeringArtifact(spec.fingerprint, directions, chosen, dict(notes))
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}: it is damaged.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _read(name: str, entry: Mapping[str, Any], arrays, spec: PolicySpec) -> Steering:
    """One direction, if it fits the policy; ValueError, KeyError or TypeError if not."""
    kind, site, tokens = (entry[key] for key in ("kind", "site", "tokens"))
    if kind not in _KINDS:
        raise ValueError(f"direction {name!r} is a {kind!r}: expected {sorted(_KINDS)}.")
    stack, point = split_site(site)
    if stack not in spec.stacks:
        raise ValueError(f"direction {name!r} is for {site!r}: the policy has {[*spec.stacks]}.")
    points = ("mlp_neurons",) if _KINDS[kind] is NeuronOverwrite else _ADDED
    if point not in points:
        raise ValueError(f"direction {name!r} is a {kind} for {site!r}: expected one of {points}.")
    spec.stacks[stack].layout.select(tokens)
    shapes = _shapes(_KINDS[kind], spec.stacks[stack])
    found = {field: arrays[f"{name}/{field}"] for field in shapes}
    for field, shape in shapes.items():
        if found[field].shape != shape:
            raise ValueError(
                f"direction {name!r} has shape {found[field].shape} in {field!r}; {site!r} of this "
                f"policy needs {shape}."
            )
    numbers = {field: jnp.asarray(_finite(name, field, array)) for field, array in found.items()}
    provenance = Provenance(**entry["provenance"])
    if provenance.policy != spec.fingerprint:
        raise ValueError(f"direction {name!r} was made with policy {provenance.policy[:12]}.")
    return _KINDS[kind](site=site, tokens=tokens, provenance=provenance, **numbers)


def _finite(name: str, field: str, array: Any) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind != "f" or not np.isfinite(array := array.astype(np.float32)).all():
        raise ValueError(f"direction {name!r} has a {field} whose values are not finite floats.")
    return array


def _check_causes(causes: Mapping[str, Any], directions: Mapping[str, Any]) -> None:
    """ValueError for a cause whose direction does not exist or whose strength is not a number."""
    for cause, chosen in causes.items():
        if chosen is None:
            continue
        direction, strength = chosen
        if direction not in directions:
            raise ValueError(
                f"cause {cause!r} names direction {direction!r}; there are {list(directions)}."
            )
        if not is_strength(strength):
            raise ValueError(
                f"the strength of cause {cause!r} is {strength!r}: expected a finite number."
            )
