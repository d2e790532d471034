"""How faithful attributions are, and what nuisance takes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.build.tables.cells import Tables, estimate, interval, markdown, rate


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
        return r["map"], r["over"], r["n"], pearson, f"{r['spearman']:+.2f}"

    first = ("iss", "the paper's", None, f"{results['published']:+.2f}", None)
    head = ["map", "over", "conditions", "Pearson", "Spearman"]
    return markdown(head, [first, *map(row, results["correlations"])])


def along_training(results: Mapping[str, Any]) -> str:
    """NMR@10 and success of a policy as it is trained."""
    by_map: dict[str, dict[int, Mapping[str, Any]]] = {}
    for r in results["training"]:
        by_map.setdefault(r["map"], {})[r["step"]] = r

    def row(step: int, first: Mapping[str, Any]) -> tuple:
        cells = [
            f"{found[step]['nmr']:.2f} ± {found[step]['error']:.2f}" for found in by_map.values()
        ]
        return step, rate(first), *cells, f"{first['chance']:.2f}"

    head = ["steps", "success", *(f"NMR@10, {name}" for name in by_map), "chance"]
    firsts = next(iter(by_map.values()), {})
    return markdown(head, [row(step, first) for step, first in firsts.items()])


TABLES: Tables = {
    "fidelity": ("fidelity", fidelity),
    "nuisance": ("nmr", nuisance),
    "nuisance_training": ("nmr", along_training),
}
