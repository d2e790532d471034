"""OpenVLA-OFT's extra weight files: action head, state projector, towers with FiLM.

They are published as PyTorch pickles; `interop.convert_pt.convert` makes safetensors of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from interop.openvla.checkpoints import check_names, shapes_of
from interop.openvla.model import OpenVLA
from interop.openvla.vision import VisionBackbone
from mistjax.untrusted import reading, refuse_stand_in

_WRAPPERS = ("module.", "vision_backbone.")


def load_component(
    module: nn.Module,
    file: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> None:
    """Fills a module from a converted file; names may carry the prefixes of the training code.

    Raises:
        ValueError: names or shapes differ from the module's.
    """
    file = Path(file)
    with file.open("rb") as start:
        refuse_stand_in(file, start.read(256))
    with reading(file, "a whole safetensors file"):
        weights = {strip_wrappers(name): value for name, value in load_file(str(file)).items()}
    if wrong := [name for name, value in weights.items() if not _is_sound(value, dtype)]:
        raise ValueError(f"{file}: {wrong[0]} holds no finite floating-point numbers.")
    check_names(shapes_of(module), {name: tuple(value.shape) for name, value in weights.items()})
    own: dict[str, Tensor] = {k: v.to(device=device, dtype=dtype) for k, v in weights.items()}
    module.load_state_dict(own, assign=True)
    module.requires_grad_(False).eval()


def _is_sound(value: Tensor, dtype: torch.dtype) -> bool:
    return value.is_floating_point() and bool(torch.isfinite(value.to(dtype)).all())


def load_film(model: OpenVLA, file: str | Path) -> None:
    """Replaces the vision towers by ones with FiLM, from a converted `vision_backbone` file."""
    model.config = dataclasses.replace(model.config, film=True)
    with torch.device("meta"):
        towers = VisionBackbone(model.config)
    load_component(towers, file, dtype=model.dtype, device=model.device)
    model.vision_backbone = towers


def strip_wrappers(name: str) -> str:
    """`module.` comes from parallel training, `vision_backbone.` from the FiLM wrapper."""
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name
