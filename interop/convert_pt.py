"""Converts a PyTorch weight file to safetensors, in a process of its own.

`weights_only=True` refuses files that hold code; the process (`mistjax.isolation`) keeps whatever
else a damaged file does away from the robot's. Nothing else in this project reads PyTorch's
pickles.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mistjax import isolation
from mistjax.files import atomic
from mistjax.untrusted import open_file, refuse_stand_in


def convert(source: str | Path, target: str | Path) -> None:
    """Writes the arrays of `source` to `target`.

    Args:
        source: a dictionary of tensors, as `torch.save` wrote it.
        target: the `.safetensors` file to write.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the file is a link, holds more than arrays, or is damaged; says what PyTorch
            reported.
    """
    if not os.path.lexists(source):
        raise FileNotFoundError(f"{source} does not exist.")
    try:
        isolation.call(f"{__name__}:write", source, target=os.path.abspath(target))
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"{source} could not be converted: {reason} Expected a file with a dictionary of "
            "tensors and nothing else."
        ) from error


def write(source: str, target: str) -> None:
    """What the process does."""
    import torch
    from safetensors.torch import save_file

    with open_file(source) as file:
        refuse_stand_in(Path(source), file.read(256))
        file.seek(0)
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch raises what it meets, and advises to read it anyway
            kind = type(error).__name__
            raise ValueError(f"PyTorch's reader of weights refuses it ({kind}).") from None
        size = os.fstat(file.fileno()).st_size
    tensors = _tensors(weights, size)
    with atomic(Path(target)) as temporary:
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, temporary)


def _tensors(weights: Any, size: int) -> dict[str, Any]:
    """The tree, if it is a flat one of tensors that take about as much room as the file."""
    import torch

    if not isinstance(weights, dict):
        raise ValueError(f"it holds a {type(weights).__name__}.")
    for name, value in weights.items():
        if isinstance(name, str) and isinstance(value, dict):
            raise ValueError(
                f"{name!r} is a tree of its own among {sorted(map(str, weights))[:8]}, as training "
                f"states hold them: save the one that is meant, torch.save(state[{name!r}], ...)."
            )
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{name!r} is a {type(value).__name__}.")
        if value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{name!r} is sparse or quantised.")
    expanded = sum(value.numel() * value.element_size() for value in weights.values())
    if expanded > isolation.EXPANSION * size:
        raise ValueError(f"its tensors take {expanded >> 20} MiB, its file {size >> 20}.")
    return weights
