"""Converts a PyTorch weight file to safetensors, in a process of its own.

`weights_only=True` refuses files that hold code; the separate process keeps whatever else a damaged
file does away from the robot's. Nothing else in this project reads PyTorch's pickles.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def convert(source: str | Path, target: str | Path) -> None:
    """Writes the arrays of `source` to `target`.

    Args:
        source: a dictionary of tensors, as `torch.save` wrote it.
        target: the `.safetensors` file to write.

    Raises:
        ValueError: the file holds more than arrays, or is damaged; says what PyTorch reported.
    """
    result = subprocess.run(
        [sys.executable, "-m", "mistjax.interop.convert_pt", str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(
            f"{source} could not be converted: {reason}. Expected a file with a dictionary of "
            "tensors and nothing else."
        )


def _main(source: str, target: str) -> None:
    import torch
    from safetensors.torch import save_file

    weights = torch.load(source, map_location="cpu", weights_only=True)
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, target)


if __name__ == "__main__":
    _main(*sys.argv[1:])
