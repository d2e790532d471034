"""Checks of numbers that a user gives; an error names the number."""

from __future__ import annotations

import math
import operator
from typing import Any


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of at least `least`, NumPy's too, as Python's.

    Raises:
        ValueError: it is not.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}: expected a whole number.") from None
    if number < least:
        raise ValueError(f"{name} is {number}: expected {least} or more.")
    return number


def between(name: str, value: float, low: float, high: float) -> float:
    """A number strictly between two others.

    Raises:
        ValueError: it is not, or NaN.
    """
    if not low < value < high:
        limits = f"above {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} is {value:g}: expected a number {limits}.")
    return value
