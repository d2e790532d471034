"""What the cells of the tables are made of."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mistjax.stats import Rate

Tables = dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]]
"""Name of a table -> the results file that it is made from, and how."""


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; None is an empty cell."""
    lines = [head, ["---"] * len(head)]
    lines += [["" if cell is None else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys, the keys above."""
    return markdown(list(rows[0]), ([*row.values()] for row in rows))


def interval(found: Sequence[float], digits: int = 2) -> str:
    low, high = found
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def estimate(found: Sequence[float], digits: int = 2) -> str:
    """A number and its interval, from the three."""
    return f"{found[0]:.{digits}f} {interval(found[1:], digits)}"


def rate(found: Mapping[str, Any]) -> str:
    return str(Rate(found["k"], found["n"]))


def over_seeds(values: Sequence[float | None], shown: str = ".2f") -> str:
    """Mean, and standard deviation where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = format(statistics.fmean(known), shown)
    return mean if len(known) == 1 else f"{mean} ± {format(statistics.stdev(known), shown)}"


def share(found: Sequence[tuple[int, int]]) -> str:
    """k of n of each seed: Wilson's interval of one, the mean and the spread of several."""
    if len(found) == 1:
        return str(Rate(*found[0]))
    parts = [k / n for k, n in found]
    return f"{statistics.fmean(parts):.0%} ± {100 * statistics.stdev(parts):.0f}"
