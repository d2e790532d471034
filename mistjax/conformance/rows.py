"""One line of a conformance table, how its error is measured, and the table of a whole folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """Largest relative error of one quantity."""

    group: str
    quantity: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False also for a NaN."""
        return self.error <= self.tolerance


def compare(group: str, quantity: str, ours: Any, reference: Any, tolerance: float) -> Row:
    """A row; shapes that differ or misplaced NaNs count as an infinite error."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return Row(group, quantity, float("inf"), tolerance)
    valid = ~np.isnan(b)
    if not valid.any():
        return Row(group, quantity, 0.0, tolerance)
    error = np.abs(a - b)[valid].max() / max(1.0, np.abs(b[valid]).max())
    return Row(group, quantity, float(error), tolerance)


def table(rows: Sequence[Row]) -> str:
    """The largest error of each group, then every quantity beyond its tolerance, then the count."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    # a NaN is larger than everything
    worst = [
        max(group, key=lambda row: (row.error != row.error, row.error)) for group in groups.values()
    ]
    failed = [row for row in rows if not row.passed]
    lines = [_line(row, f"  (of {len(groups[row.group])})") for row in worst]
    lines += [_line(row, "  beyond tolerance") for row in failed]
    return "\n".join([*lines, f"{len(failed)} of {len(rows)} quantities beyond their tolerance"])


def _line(row: Row, remark: str) -> str:
    return f"{row.error:10.2e} <= {row.tolerance:7.1e}  {row.group}: {row.quantity}{remark}"
