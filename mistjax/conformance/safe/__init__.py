"""Compare this package with recorded outputs of the original SAFE and FIPER implementations.

`conformance_safe(folder)` runs every group whose files the folder holds. An error is the largest
absolute difference divided by the largest magnitude of the reference (at least 1); tolerances are
for float32.
"""

from __future__ import annotations

from pathlib import Path

from mistjax.conformance.rows import Row
from mistjax.conformance.safe import baselines, evaluation, fiper, heads

GROUPS = {**heads.GROUPS, **baselines.GROUPS, **evaluation.GROUPS, **fiper.GROUPS}


def conformance_safe(folder: Path | str) -> list[Row]:
    """Rows of every group that `folder` holds.

    Args:
        folder: recorded outputs, one npz per group.

    Raises:
        FileNotFoundError: none of the groups' files are there.
    """
    folder = Path(folder)
    rows: list[Row] = []
    for files, compare in GROUPS.items():
        if all((folder / name).is_file() for name in files):
            rows += compare(folder)
    if not rows:
        wanted = sorted({name for files in GROUPS for name in files})
        raise FileNotFoundError(f"{folder} holds none of {', '.join(wanted)}.")
    return rows


__all__ = ["Row", "conformance_safe"]
