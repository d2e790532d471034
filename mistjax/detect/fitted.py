"""What was fitted to the inputs of one policy, on disk: `NAME.json`, and `NAME.safetensors` for
arrays. Networks and principal components are kept in half precision.
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
from mistjax.files import load_together, read_tensors, save_together

VERSION = 1
_HALF = ("directions", "layers")


def save_fitted(
    folder: str | Path,
    name: str,
    value: Any,
    policy: str,
    card: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a pytree to a folder, which is made if absent: its arrays, a card with what loading
    needs and the fingerprint of the recorded policy, and notes for people (JSON values).
    """
    flat = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(value), sep="/")
    arrays = {
        part: np.ascontiguousarray(
            np.asarray(leaf, np.float16 if set(part.split("/")) & set(_HALF) else None)
        )
        for part, leaf in flat.items()
    }
    document = {"version": VERSION, "policy": policy, **card, "notes": dict(notes or {})}
    save_together(Path(folder) / f"{name}.json", document, {f"{name}.safetensors": save(arrays)})


def load_fitted(
    folder: str | Path, name: str, policy: str, does: str, command: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the card, the arrays by name, nested as in the pytree) of what `command` wrote.

    Args:
        folder, name: of `save_fitted`.
        policy: fingerprint of the policy that it is loaded for.
        does, command: what it does to inputs, and what makes it, for messages.

    Raises:
        FileNotFoundError: none there.
        FingerprintError: made with another policy.
        ValueError: another format version, or a damaged file.
    """
    path, arrays = Path(folder) / f"{name}.json", f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {folder}; write one with `{command}`.")
    document, files = load_together(path, [arrays])
    if document["version"] != VERSION:
        raise ValueError(
            f"{path} has format version {document['version']}; this release reads {VERSION}. Make "
            f"it again with `{command}`."
        )
    if document["policy"] != policy:
        raise FingerprintError(
            f"{path} {does} the inputs of policy {document['policy'][:12]}, not of {policy[:12]}: "
            f"fit one to runs of this policy with `{command}`."
        )
    single = {
        part: jnp.asarray(value.astype(np.float32) if value.dtype == np.float16 else value)
        for part, value in read_tensors(path.with_name(arrays), files[arrays]).items()
    }
    return document, flax.traverse_util.unflatten_dict(single, sep="/")


def layers_of(nested: Mapping[str, Any]) -> tuple[tuple[Any, Any], ...]:
    """Weights and biases of a network's layers, in their order."""
    return tuple((nested[str(i)]["0"], nested[str(i)]["1"]) for i in range(len(nested)))
