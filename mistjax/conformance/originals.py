"""Which recording to compare with: a model's own, or a folder of an original implementation."""

from __future__ import annotations

from pathlib import Path

from mistjax.conformance.runner import main
from mistjax.conformance.safe import Row, conformance_safe
from mistjax.conformance.safe.rows import table


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
        file: a model's recorded arrays, see `runner.main`.
        safe: folder of recorded outputs of SAFE and FIPER.
        openvla: folder of recorded outputs of OpenVLA; needs the extra `openvla`.
        atol: largest absolute error that passes, for `file`; the folders have tolerances of theirs.
        record_from: a checkpoint folder to write `file` from first.

    Returns:
        The exit code: 1 when an output is off by more than its tolerance.

    Raises:
        ValueError: none or several of the three.
        ImportError: `openvla` without PyTorch.
    """
    given = {"FILE": file, "--safe": safe, "--openvla": openvla}
    named = [name for name, path in given.items() if path is not None]
    if len(named) != 1:
        raise ValueError(
            f"got {' and '.join(named) or 'nothing'} to compare with: give exactly one of "
            f"{', '.join(given)}."
        )
    if file is not None:
        return main(file, atol=atol, record_from=record_from)
    rows = conformance_safe(safe) if safe is not None else openvla_rows(openvla)  # type: ignore[arg-type]
    print(f"{safe or openvla}\n{table(rows)}")
    return int(not all(row.passed for row in rows))


def openvla_rows(folder: Path) -> list[Row]:
    """Every recorded output of OpenVLA; its group is the file it was recorded in."""
    try:
        from mistjax.interop.openvla.conformance import conformance_openvla, tolerance
    except ImportError as error:
        raise ImportError(
            f"OpenVLA runs in PyTorch, which does not import here ({error}): "
            "pip install 'mistjax[openvla]'."
        ) from error
    errors = conformance_openvla(folder)
    if not errors:
        raise FileNotFoundError(f"{folder} holds no recorded output of OpenVLA to compare with.")
    return [
        Row(name.partition("/")[0], name.partition("/")[2], error, tolerance(name))
        for name, error in errors.items()
    ]
