"""The tables of docs/results.md and of the README, made from the results of the experiments.

    python -m experiments.build.results_page

A table stands between `<!-- table NAME -->` and `<!-- end -->`; the text around it is by hand. A
test fails when a table is not what its file says.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from experiments.build.tables import (
    compiled,
    cost,
    detectors,
    explanations,
    faults,
    libero,
    serving,
    study,
)
from experiments.build.tables.cells import Tables
from experiments.studies.cross_architecture import as_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "compiled.md", ROOT / "README.md")
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES: Tables = {"architectures": ("cross_architecture", as_table)}
for _part in (study, detectors, faults, libero, explanations, cost, compiled, serving):
    TABLES |= _part.TABLES


def filled(text: str, folder: Path = ROOT / "experiments" / "results") -> str:
    """The page with every table from its file; KeyError for a table that is not in `TABLES`."""

    def table(match: re.Match[str]) -> str:
        file, make = TABLES[match[2]]
        results = json.loads((folder / f"{file}.json").read_text())
        return f"{match[1]}{make(results)}\n{match[3]}"

    return BLOCK.sub(table, text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
