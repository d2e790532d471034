"""A sparse autoencoder on disk, as `mistjax train-sae` writes it: `sae.json` and
`sae.safetensors`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from mistjax.detect.artifact import FingerprintError
from mistjax.detect.methods.sparse import SparseCoder
from mistjax.files import load_together, read_tensors, save_together
from mistjax.hooks.sites import Tap

VERSION = 1
_CARD, _ARRAYS = "sae.json", "sae.safetensors"
FIELDS = ("encoder", "bias", "decoder", "mean")


@dataclasses.dataclass(frozen=True, eq=False)
class SparseArtifact:
    """An autoencoder, what it is of, and how it was trained.

    Attributes:
        policy: the policy's fingerprint.
        tap: whose tokens.
        coder: the autoencoder.
        notes: JSON values for people.
    """

    policy: str
    tap: Tap
    coder: SparseCoder
    notes: dict[str, Any]


def save_sparse(folder: str | Path, artifact: SparseArtifact) -> None:
    """Writes `sae.json` and `sae.safetensors`."""
    arrays = {name: np.asarray(getattr(artifact.coder, name), np.float32) for name in FIELDS}
    document = {
        "version": VERSION,
        "policy": artifact.policy,
        "tap": str(artifact.tap),
        "k": artifact.coder.k,
        "notes": artifact.notes,
    }
    save_together(Path(folder) / _CARD, document, {_ARRAYS: save(arrays)})


def load_sparse(folder: str | Path, fingerprint: str) -> SparseArtifact:
    """Reads an autoencoder for the policy with a fingerprint.

    Raises:
        FileNotFoundError: none is there.
        FingerprintError: trained on another policy.
        ValueError: another format, or a damaged file.
    """
    path = Path(folder) / _CARD
    if not path.is_file():
        raise FileNotFoundError(f"no {_CARD} in {folder}: write one with `mistjax train-sae`.")
    document, files = load_together(path, [_ARRAYS])
    if document.get("version") != VERSION:
        raise ValueError(f"{path} has format {document.get('version')}: train it again.")
    if document.get("policy") != fingerprint:
        raise FingerprintError(
            f"{folder} is of policy {str(document.get('policy'))[:12]}, not of "
            f"{fingerprint[:12]}: train it on this one with `mistjax train-sae`."
        )
    arrays = read_tensors(path.with_name(_ARRAYS), files[_ARRAYS])
    try:
        tap, k = Tap.parse(document["tap"]), document["k"]
        found = [jnp.asarray(arrays[name], jnp.float32) for name in FIELDS]
        width, count = found[0].shape
        if [array.shape for array in found] != [(width, count), (count,), (count, width), (width,)]:
            raise ValueError(f"its arrays are {[array.shape for array in found]}")
        if not isinstance(k, int) or not 1 <= k <= count:
            raise ValueError(f"k is {k!r}")
        if not all(bool(jnp.isfinite(array).all()) for array in found):
            raise ValueError("it holds numbers that are not finite")
        return SparseArtifact(fingerprint, tap, SparseCoder(*found, k=k), document["notes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; train it again.") from None
