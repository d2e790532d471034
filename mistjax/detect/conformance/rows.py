"""One line of a conformance table, and how its error is measured."""

from __future__ import annotations

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
