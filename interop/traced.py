"""What travels between JAX and the network: an observation, a prefix, taps and edits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
from jaxtyping import Array

from interop.edits import take_apart
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation


@flax.struct.dataclass
class Prefix:
    """What `prefill` read off an observation: the decoder's arrays, and taps."""

    arrays: dict[str, Array]
    taps: dict[str, Array]


def leaves(obs: Observation) -> dict[str, Any]:
    """An observation as a plain dictionary, which may hold tensors."""
    fields = {field.name: getattr(obs, field.name) for field in dataclasses.fields(obs)}
    return {name: value for name, value in fields.items() if value is not None}


def pick(
    stacks: Sequence[str], taps: Sequence[Tap], edits: Sequence[Edit]
) -> tuple[tuple[Tap, ...], list[Any], list[Any]]:
    """Taps and edits of some stacks; edits as what-and-where and arrays."""
    parts = [take_apart(edit) for edit in edits if edit.stack in stacks]
    taps = tuple(tap for tap in taps if tap.stack in stacks)
    return taps, [where for where, _ in parts], [arrays for _, arrays in parts]
