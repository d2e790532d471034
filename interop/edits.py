"""`mistjax.hooks` edits on tensors.

An edit comes apart into what and where (`EditSite`, hashable) and its arrays, which may be JAX's,
numpy's or tensors that want a gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from interop.arrays import to_torch
from mistjax.attribute.patching import MaskedPatch
from mistjax.hooks.edits import Add, Affine, Edit, Patch, ProjectOut, Scale, SetNeurons
from mistjax.hooks.sites import split_site


def _set_neurons(x: Tensor, c: Tensor, mask: Tensor, value: Tensor) -> Tensor:
    weight = (c * mask).to(x.dtype)
    return torch.where(weight != 0, x + weight * (value.to(x.dtype) - x), x)


def _project_out(x: Tensor, c: Tensor, direction: Tensor) -> Tensor:
    unit = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    unit = unit.to(x.dtype)
    return x - c.to(x.dtype) * (x * unit).sum(-1, keepdim=True) * unit


def _affine(x: Tensor, c: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    weight = weight[:, 0] if weight.ndim == 4 else weight  # one per element: [B,1,D,D]
    return x + c.to(x.dtype) * (x @ weight.to(x.dtype) + bias.to(x.dtype))


def _masked_patch(x: Tensor, c: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    weight, value = (c * mask).to(x.dtype), value.to(x.dtype)
    return torch.where(weight == 1, value, x + weight * (value - x))


_TRANSFORMS: dict[type[Edit], Callable[..., Tensor]] = {
    Add: lambda x, c, vector: x + (c * vector).to(x.dtype),
    Affine: _affine,
    SetNeurons: _set_neurons,
    Scale: lambda x, c, factor: x * (1 + c * (factor - 1)).to(x.dtype),
    ProjectOut: _project_out,
    MaskedPatch: _masked_patch,
    Patch: lambda x, c, value: x + c.to(x.dtype) * (value.to(x.dtype) - x),
}


@dataclasses.dataclass(frozen=True)
class EditSite:
    """What an edit is and where: the part of it that is not arrays."""

    kind: type[Edit]
    site: str
    tokens: str

    @property
    def stack(self) -> str:
        return split_site(self.site)[0]


def take_apart(edit: Edit) -> tuple[EditSite, dict[str, Any]]:
    """An edit as (what and where, its arrays by name)."""
    if type(edit) not in _TRANSFORMS:
        known = sorted(kind.__name__ for kind in _TRANSFORMS)
        raise TypeError(f"{type(edit).__name__} has no PyTorch form: expected one of {known}.")
    fields = {field.name: getattr(edit, field.name) for field in dataclasses.fields(edit)}
    where = EditSite(type(edit), fields.pop("site"), fields.pop("tokens"))
    return where, {name: value for name, value in fields.items() if value is not None}


class Change:
    """An edit with its arrays on the model's device."""

    def __init__(
        self, where: EditSite, arrays: Mapping[str, Any], depth: int, device: torch.device
    ):
        self.where = where
        self.data = {name: to_torch(array, device).float() for name, array in arrays.items()}
        self.strength = self.data.pop("strength").reshape(-1, 1)
        self.steps = self.data.pop("step_weights", None)
        for name, array in self.data.items():
            if array.shape[0] != depth:
                raise ValueError(
                    f"{where.kind.__name__}.{name} has shape {tuple(array.shape)}: its first axis "
                    f"must be the {depth} layers of {where.stack!r}."
                )
        self.gate = self.data.pop("gate", None)

    def __call__(self, x: Tensor, layer: int, mask: Tensor, step: int | None) -> Tensor:
        c = self.strength * mask
        if self.gate is not None:
            c = c * self.gate[layer]
        if step is not None and self.steps is not None:
            c = c * self.steps[step]
        c = c.reshape(*c.shape, *(1,) * (x.ndim - 2))
        data = {name: array[layer] for name, array in self.data.items()}
        return torch.where(c != 0, _TRANSFORMS[self.where.kind](x, c, **data), x)
