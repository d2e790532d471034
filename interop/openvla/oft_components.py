"""OpenVLA-OFT's extra weight files.

They are published as PyTorch pickles. `convert` reads one in a process of its own, with
`weights_only=True`, and writes safetensors; everything else reads safetensors only.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from interop.openvla.checkpoints import check_names, shapes_of
from interop.openvla.model import OpenVLA
from interop.openvla.vision import VisionBackbone

_WRAPPERS = ("module.", "vision_backbone.")


def convert(source: str | Path, target: str | Path) -> None:
    """Converts one component (`action_head--N_checkpoint.pt` and the like) to safetensors.

    Args:
        source: the published file.
        target: the `.safetensors` file to write.

    Raises:
        ValueError: the file holds more than arrays, or is damaged; says what PyTorch reported.
    """
    result = subprocess.run(
        [sys.executable, "-m", "interop.openvla.oft_components", str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"{source} could not be converted: {reason}. Expected a dictionary of tensors, as "
            "OpenVLA-OFT saves its components."
        )


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
    weights = {strip_wrappers(name): value for name, value in load_file(str(file)).items()}
    check_names(shapes_of(module), {name: tuple(value.shape) for name, value in weights.items()})
    own: dict[str, Tensor] = {k: v.to(device=device, dtype=dtype) for k, v in weights.items()}
    module.load_state_dict(own, assign=True)
    module.requires_grad_(False).eval()


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


def _main(source: str, target: str) -> None:
    weights = torch.load(source, map_location="cpu", weights_only=True)
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, target)


if __name__ == "__main__":
    _main(*sys.argv[1:])
