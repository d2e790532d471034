"""How faithful attributions are, and what nuisance takes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.build.tables.cells import Tables, estimate, interval, markdown


def fidelity(results: Mapping[str, Any]) -> str:
    """Pearson's r of each method, policy and kind of change."""
    kinds = list(results["published"])

    def shown(r: Mapping[str, Any], kind: str) -> str | None:
        return None if kind not in r else estimate(r[kind])

    rows = [
        (name, r["by"], r.get("moments", found["moments"]), *(shown(r, kind) for kind in kinds))
        for name, found in results["policies"].items()
        for r in found["rows"]
        if "refused" not in r
    ]
    published = [f"{results['published'][kind]:.2f}" for kind in kinds]
    first = ("the paper's", "iss", None, *published)
    return markdown(["policy", "map", "moments", *kinds], [first, *rows])


def nuisance(results: Mapping[str, Any]) -> str:
    """How NMR@10 and success go together over conditions."""

    def row(r: Mapping[str, Any]) -> tuple:
        pearson = f"{r['pearson']:+.2f} {interval(r['interval'])}"
        return r["over"], r["n"], pearson, f"{r['spearman']:+.2f}"

    rows = [("the paper's", None, f"{results['published']:+.2f}", None)]
    return markdown(
        ["over", "conditions", "Pearson", "Spearman"], [*rows, *map(row, results["correlations"])]
    )


TABLES: Tables = {
    "fidelity": ("fidelity", fidelity),
    "nuisance": ("nmr", nuisance),
}
