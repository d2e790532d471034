"""Success of arms: the paired study, known changes of appearance, edits and perturbations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from experiments.build.tables.cells import Tables, as_markdown, estimate, interval, markdown
from mistjax.stats import Rate
from mistjax.studies.page import loss_rows, table_rows, target_rows
from mistjax.studies.table import Row


def study_rows(results: Mapping[str, Any], part: str) -> list[Row]:
    """The rows of a part of a study."""
    return _rows(results["tables"][part])


def _rows(entries: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [Row(**{**entry, "interval": tuple(entry["interval"])}) for entry in entries]


def study_summary(results: Mapping[str, Any]) -> str:
    """The mixture in short."""
    shown = {
        "bare": "bare",
        "always_best": f"the best single remedy, always on ({results['best']})",
        "all_at_alarm": "all remedies at the alarm",
        "random_input": "the remedy of a random input at the alarm",
        "mist": "**MIST**: the named input is repaired",
        "oracle": "oracle: told the input and the onset",
    }
    rows = {row.arm: row for row in study_rows(results, "mixture")}
    bare = rows["bare"].rate.value

    def against(row: Row) -> tuple[str | None, ...]:
        if row.arm == "bare":
            return None, None
        return f"{100 * (row.rate.value - bare):+.0f} pt", f"{row.p_against_bare:.1g}"

    return markdown(
        ["arm", "success", "against bare", "p"],
        ((name, str(rows[arm].rate), *against(rows[arm])) for arm, name in shown.items()),
    )


def study_part(part: str) -> Callable[[Mapping[str, Any]], str]:
    """All arms of a part of the study."""
    return lambda results: as_markdown(table_rows(study_rows(results, part)))


def study_conditions(results: Mapping[str, Any]) -> str:
    """Everything but the mixture."""
    rows = [
        row
        for part in results["tables"]
        if not part.startswith("robust")
        for row in study_rows(results, part)
        if row.arm != "monitor" and row.condition != "mixture"
    ]
    shown = table_rows(rows)
    kept = ("arm", "success [95%] (k/n)", "repaired / broken", "p against bare")
    kept += ("p against always on",)
    return as_markdown(
        [
            {"condition": row.condition.replace("_", " ")} | {key: cells[key] for key in kept}
            for row, cells in zip(rows, shown, strict=True)
        ]
    )


def other_loops(results: Mapping[str, Any]) -> str:
    """The same loop around other policies."""
    kept = ("arm", "success [95%] (k/n)", "repaired / broken", "p against bare")
    kept += ("alarms in clean ones",)
    return as_markdown(
        [
            {"policy": f"`{name}`"} | {key: cells[key] for key in kept}
            for name, found in results["policies"].items()
            for cells in table_rows(_rows(found["table"]))
        ]
    )


def study_targets(results: Mapping[str, Any]) -> str:
    return as_markdown(target_rows(results["targets"]))


def study_losses(results: Mapping[str, Any]) -> str:
    return as_markdown(loss_rows(results["losses"]))


def remedies(part: str) -> Callable[[Mapping[str, Any]], str]:
    """All arms of a part of `experiments.studies.remedies`, beside bare and each one's control."""

    def table(results: Mapping[str, Any]) -> str:
        found = results["parts"][part]
        against = {entry["arm"]: entry for entry in found["against"]}

        def control(arm: str) -> dict[str, str]:
            if arm not in against:
                return {"against its control": "–", "p against it": "–"}
            e = against[arm]
            return {
                "against its control": f"{e['control']}: {e['repaired']} / {e['broken']}",
                "p against it": f"{e['p']:.2g}",
            }

        kept = ("arm", "success [95%] (k/n)", "repaired / broken", "p against bare")
        return as_markdown(
            [
                {key: cells[key] for key in kept} | control(cells["arm"])
                for cells in table_rows(_rows(found["table"]))
            ]
        )

    return table


def gate(results: Mapping[str, Any]) -> str:
    """What a gate on the action spares, and what it costs."""
    head = ["arm", "success", "repaired / broken", "p", "spent in", "spared [95%]"]

    def row(r: Mapping[str, Any]) -> tuple:
        used = f"{r['spent']} of {r['inferences']} inferences ({r['what']})"
        pair, p, share = f"{r['repaired']} / {r['broken']}", f"{r['p']:.2g}", "–"
        if not r["arm"].endswith(("_gated", "_shut")):  # the loop, which the others go beside
            pair = p = "–"
        elif r["spared"] is not None:
            share = "{:.0%} [{:.0%}, {:.0%}]".format(*r["spared"])
        return r["arm"], str(Rate(r["successes"], r["n"])), pair, p, used, share

    return markdown(head, map(row, results["rows"]))


def known_change(results: Mapping[str, Any]) -> str:
    return as_markdown(results["table"])


def repair(results: Mapping[str, Any]) -> str:
    head = ["appearance", "edit", "change left in the tower", "success", "repaired / broken", "p"]
    return markdown(
        head,
        (
            (
                r["appearance"],
                r["edit"],
                r["left"],
                r["success"],
                f"{r['repaired']} / {r['broken']}",
                r["p"],
            )
            for r in results["rows"]
        ),
    )


def dose(results: Mapping[str, Any]) -> str:
    """Every vector over all layers; those of single layers are in the file."""

    def row(r: Mapping[str, Any]) -> tuple:
        z = r.get("z")
        return (
            r["vector"],
            r["site"],
            r["statistic"],
            f"{r['at -1']:+.3f} to {r['at +1']:+.3f}",
            None if z is None else f"{z:.1f}",
        )

    head = ["vector", "site", "statistic", "change at -1 to +1", "z against random vectors"]
    return markdown(head, (row(r) for r in results["rows"] if ", layer" not in r["vector"]))


def sparse_arms(results: Mapping[str, Any]) -> str:
    """What stands in for the tokens of a tap, and what that does to success."""
    head = ["in place of the tokens", "variance left", "success", "against bare"]

    def row(r: Mapping[str, Any]) -> tuple:
        name = "nothing (bare)" if r["arm"] == "bare" else r["arm"].replace("_", " ")
        return name, f"{r['left']:.1%}", r["success"], r.get("against")

    return markdown(head, map(row, results["arms"]))


def sparse_predictors(results: Mapping[str, Any]) -> str:
    """What tells failures of other episodes, while every episode lasts."""

    def row(r: Mapping[str, Any]) -> tuple:
        shuffled = interval(r["shuffled"]) if "shuffled" in r else None
        return r["by"], estimate([r["auc"], *r["interval"]]), shuffled

    chosen = [{**r, "by": f"feature {r['feature']}"} for r in results["chosen"]]
    head = ["told by", "AUC", "with shuffled labels"]
    return markdown(head, map(row, [*results["predictors"], *chosen]))


def perturbations(results: Mapping[str, Any]) -> str:
    """Success of every policy under every perturbation, strength by strength."""
    played = results["policies"]
    cells: dict[tuple[str, float], dict[str, str]] = {}
    for name, found in played.items():
        for r in found["rows"]:
            mark = "*" if r["p"] < 0.05 else ""
            cells.setdefault((r["perturbation"], r["strength"]), {})[name] = f"{r['k']}{mark}"
    (n,) = {found["clean"][1] for found in played.values()}
    rows = [("none", None, *(str(found["clean"][0]) for found in played.values()))]
    rows += [
        (name, f"{strength:g}", *(counts.get(policy, "–") for policy in played))
        for (name, strength), counts in cells.items()
    ]
    return markdown(["perturbation", "strength", *(f"{p}, of {n}" for p in played)], rows)


TABLES: Tables = {
    "known_change": ("known_change", known_change),
    "study_mixture": ("full_mist", study_part("mixture")),
    "study_summary": ("full_mist", study_summary),
    "study_controls": ("full_mist", study_part("controls")),
    "study_robust": ("full_mist", study_part("robust")),
    "study_robust_nominal": ("full_mist", study_part("robust_nominal")),
    "study_loop": ("full_mist", study_part("loop")),
    "study_failures": ("full_mist", study_part("failure_monitor")),
    "study_conditions": ("full_mist", study_conditions),
    "other_loops": ("other_loops", other_loops),
    "study_targets": ("full_mist", study_targets),
    "study_losses": ("full_mist", study_losses),
    "remedies_typos": ("remedies", remedies("typos")),
    "remedies_light": ("remedies", remedies("light")),
    "remedies_patches": ("remedies", remedies("patches")),
    "remedies_redrawn": ("remedies", remedies("redrawn")),
    "gate": ("gate", gate),
    "repair": ("repair", repair),
    "dose": ("steering_dose", dose),
    "sparse_arms": ("sparse_features", sparse_arms),
    "sparse_predictors": ("sparse_features", sparse_predictors),
    "perturbations": ("perturbations", perturbations),
    "libero_loop": ("libero_loop", study_part("study")),
    "libero_controls": ("libero_controls", study_part("study")),
}
