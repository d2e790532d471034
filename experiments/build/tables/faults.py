"""Which fault is detected, when, and which input is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.build.tables.cells import Tables, markdown, over_seeds, rate, share

FAULT_MIXTURES = {
    "board": "seen",
    "board_unseen_strengths": "unseen strengths",
    "board_unseen_kinds": "unseen kinds",
}


SHOWN_BY_FAULT = (
    "inputs, level and change",
    "inputs, level",
    "inputs, change",
    "hidden states, Mahalanobis",
    "GUARD's diagnostics, Mahalanobis",
    "chunk overlap (STAC-single)",
    "velocity disagreement",
    "contrast-set probe",
    "Hide-and-Seek",
    "clock only",
)


def fault_detectors(results: Mapping[str, Any]) -> str:
    """*An input is unsound*: false alarms, and faults of inputs in the three mixtures."""

    def cells(row: Mapping[str, Any], group: str) -> list[str]:
        found = _seeds(row, "inputs", "faults", group)
        return [
            "; ".join(
                [
                    over_seeds([f["auc_per_timestep"] for f in found]),
                    over_seeds([f["auc_by_earliest_stop"] for f in found]),
                    share([(f["within_10_steps"], f["n"]) for f in found]),
                    over_seeds([f["median_latency_steps"] for f in found], ".0f"),
                    share([(f["missed"], f["n"]) for f in found]),
                ]
            )
        ]

    def line(name: str, row: Mapping[str, Any]) -> list[str]:
        clean = _seeds(row, "inputs", "clean")
        return [
            name,
            row["question"],
            row["fitted_to"],
            share([(c["alarmed"], c["n"]) for c in clean]),
            over_seeds([c["alarms_per_episode"] for c in clean]),
            *(cell for group in FAULT_MIXTURES for cell in cells(row, group)),
        ]

    head = ["detector", "made for", "fitted to", "clean episodes with an alarm", "alarms each"]
    head += [
        f"{name}: AUC per timestep; by earliest stop; within 10 steps; median latency; missed"
        for name in FAULT_MIXTURES.values()
    ]
    return markdown(head, (line(*item) for item in results["rows"].items()))


def failure_detectors(results: Mapping[str, Any]) -> str:
    """*The episode fails*: clean episodes and the headline mixture."""

    def line(name: str, row: Mapping[str, Any]) -> list[str]:
        cells = [name, row["question"]]
        for group in ("clean", "board"):
            found = _seeds(row, "failure", group)
            cells += [
                over_seeds([f["auc_per_timestep"] for f in found]),
                over_seeds([f["auc_by_earliest_stop"] for f in found]),
                share([(f["false_alarms"], f["n"] - f["failed"]) for f in found]),
                share([(f["detected"], f["failed"]) for f in found]),
                over_seeds([f["median_steps_left"] for f in found], ".0f"),
            ]
        return cells

    columns = ("AUC per timestep", "by earliest stop", "false alarms", "detected", "steps left")
    head = ["detector", "made for"]
    head += [f"{group}: {name}" for group in ("clean", "with faults") for name in columns]
    return markdown(head, (line(*item) for item in results["rows"].items()))


def faults_by_detector(results: Mapping[str, Any]) -> str:
    """Detected within 10 steps, of every fault and strength; with the first seed."""
    rows = {
        name: next(iter(results["rows"][name]["seeds"].values()))["inputs"]["faults"]
        for name in SHOWN_BY_FAULT
    }
    faults = sorted(fault for fault in rows[SHOWN_BY_FAULT[0]] if fault not in FAULT_MIXTURES)

    def cell(found: Mapping[str, Any], fault: str) -> str:
        there = found.get(fault)
        return f"{there['within_10_steps']}/{there['n']}" if there and there["n"] else "–"

    body = ([fault.replace("_", " "), *(cell(r, fault) for r in rows.values())] for fault in faults)
    return markdown(["fault", *rows], body)


def fault_groups(results: Mapping[str, Any]) -> str:
    """The monitor of the inputs, by where the fault is."""
    found = results["detection"]
    named = results["naming"]
    methods = ("novelty with cross-check", "novelty without cross-check", "level only", "chance")

    def row(group: str) -> tuple:
        r = found[group]
        answers = named.get(group, {})
        latency = r["median_latency_steps"]
        return (
            group.replace("_", " "),
            r["n"],
            r["early"],
            r["missed"],
            None if latency is None else f"{latency:.0f}",
            *(rate(answers[m]) if m in answers else "–" for m in methods),
        )

    head = ["fault", "n", "alarm before it", "missed", "median latency, steps"]
    groups = [group for group in found if "(" not in group and "_" not in group]
    return markdown([*head, *(f"right: {m}" for m in methods)], map(row, sorted(groups)))


def fault_explanations(results: Mapping[str, Any]) -> str:
    """Which method names the input that is unsound, by where the fault is."""
    places = ("front", "wrist", "state", "instruction", "inputs", "push", "action", "scene")
    return markdown(
        ["method", *(f"all {p}" if p == "inputs" else p for p in places)],
        (
            (name, *(rate(r[place]) if place in r else "–" for place in places))
            for name, r in results["table"].items()
        ),
    )


def fault_names(results: Mapping[str, Any]) -> str:
    """The same by fault: how many right of n."""
    table = results["table"]
    alone = [name for name in table if "as it is" not in name]
    kinds = [kind for kind in results["lost"] if kind in table["novelty"]]
    return markdown(
        ["fault", "n", *(name.removesuffix(", against clean episodes") for name in alone)],
        (
            (
                f"`{kind}`",
                table["novelty"][kind]["n"],
                *(table[name][kind]["k"] for name in alone),
            )
            for kind in kinds
        ),
    )


def fault_within(results: Mapping[str, Any]) -> str:
    """Whether the strongest part of the faulty input is one that is wrong."""
    parts = ("patch", "state entry", "word")

    def cell(r: Mapping[str, Any], part: str) -> str:
        return f"{rate(r[part])}; {r[part]['chance']:.0%}" if part in r else "–"

    return markdown(
        ["method", *(f"{part}; chance" for part in parts)],
        ((name, *(cell(r, part) for part in parts)) for name, r in results["within"].items() if r),
    )


def _seeds(row: Mapping[str, Any], *path: str) -> list[Any]:
    found = list(row["seeds"].values())
    for name in path:
        found = [part[name] for part in found]
    return found


TABLES: Tables = {
    "fault_detectors": ("fault_detectors", fault_detectors),
    "failure_detectors": ("fault_detectors", failure_detectors),
    "faults_by_detector": ("fault_detectors", faults_by_detector),
    "fault_groups": ("faults", fault_groups),
    "fault_explanations": ("fault_explanations", fault_explanations),
    "fault_names": ("fault_explanations", fault_names),
    "fault_within": ("fault_explanations", fault_within),
}
