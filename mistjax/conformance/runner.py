"""One runner for every recording: a model's own file, or a folder of an original implementation."""

from __future__ import annotations

import math
from pathlib import Path

from mistjax.conformance.models import record_checkpoint, run_conformance
from mistjax.conformance.rows import Row, table
from mistjax.conformance.safe import conformance_safe


def compare(
    file: Path | None = None,
    safe: Path | None = None,
    openvla: Path | None = None,
    *,
    atol: float = 2e-5,
    record_from: Path | None = None,
) -> int:
    """Compares one recording with what this code computes, and prints the errors.

    Args:
        file: a model's recorded arrays; its sizes lie beside it as FILE.json.
        safe: folder of recorded outputs of SAFE and FIPER.
        openvla: folder of recorded outputs of OpenVLA; needs the extra `openvla`.
        atol: largest absolute error that passes, for `file`; the folders have tolerances of theirs.
        record_from: a checkpoint folder to write `file` from first.

    Returns:
        The exit code: 1 when an output is off by more than its tolerance.

    Raises:
        ValueError: none or several of the three, or a tolerance that is none.
        FileNotFoundError: there is no such file or folder.
        ImportError: `openvla` without PyTorch.
    """
    given = {"FILE": file, "--safe": safe, "--openvla": openvla}
    named = [name for name, path in given.items() if path is not None]
    if len(named) != 1:
        raise ValueError(
            f"got {' and '.join(named) or 'nothing'} to compare with: give exactly one of "
            f"{', '.join(given)}."
        )
    if not 0 <= atol < math.inf:
        raise ValueError(f"atol is {atol}: expected 0 or a larger number.")
    folder = safe or openvla
    if folder is not None and not (folder.is_dir() and any(folder.iterdir())):
        raise FileNotFoundError(f"{folder} is not a folder of recorded outputs, or is empty.")
    if file is not None:
        if record_from is not None:
            record_checkpoint(record_from, file)
        rows = run_conformance(file, atol=atol)
    elif safe is not None:
        rows = conformance_safe(safe)
    else:
        assert openvla is not None
        rows = _openvla(openvla)
    print(f"{file or safe or openvla}\n{table(rows)}")
    return int(not all(row.passed for row in rows))


def _openvla(folder: Path) -> list[Row]:
    try:
        from mistjax.conformance.openvla import conformance_openvla
    except ImportError as error:
        raise ImportError(
            f"OpenVLA runs in PyTorch, which does not import here ({error}): "
            "pip install 'mistjax[openvla]'."
        ) from error
    return conformance_openvla(folder)
