"""The LIBERO policy, its detectors and what its monitor named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.build.tables.cells import Tables, estimate, markdown, over_seeds, rate
from mistjax.envs.faults.battery import INPUTS

TIMES = ("at once", "within ten looks", "later", "before", "never")


def libero(results: Mapping[str, Any]) -> str:
    """Success of the shipped policy, by task and over all, in each condition that was played."""

    def changed(part: Mapping[str, Any]) -> str:
        changes = (f"{name} {value}" for name, value in part["perturbation"].items())
        return ", ".join(changes) or "nominal"

    parts = [results[name] for name in ("nominal", "perturbed") if name in results]
    rows = [
        (task.replace("_", " "), *(rate(part["success"][task]) for part in parts))
        for task in parts[0]["success"]
    ]
    sums = [
        {key: sum(found[key] for found in part["success"].values()) for key in ("k", "n")}
        for part in parts
    ]
    return markdown(["task", *map(changed, parts)], [*rows, ("all", *map(rate, sums))])


def libero_detectors(results: Mapping[str, Any]) -> str:
    """Of failures in nominal episodes."""
    head = ["detector", "AUC to the shortest episode", "of one task, mean"]
    head += ["false alarms", "failures with an alarm", "early enough"]

    def area(found: Mapping[str, Any]) -> str:
        return estimate([found["value"], *found["bootstrap95"]])

    def row(name: str, found: Mapping[str, Any]) -> tuple:
        areas = area(found["auc"]), area(found["auc_task_mean"])
        rates = ("false_alarms", "detected", "detected_by_earliest_stop")
        return name, *areas, *(rate(found[key]) for key in rates)

    found = results["nominal"]["detection"]["detectors"]
    return markdown(head, (row(name, part) for name, part in found.items()))


def libero_unseen(results: Mapping[str, Any]) -> str:
    """SAFE's protocol: splits that hold whole tasks out."""
    found = results["nominal"]["detection"]["seen_unseen"]
    parts = ("val_seen", "val_unseen")
    rows = (
        (name, *(cell for part in parts for cell in (over_seeds(areas[part]), _each(areas[part]))))
        for name, areas in found.items()
    )
    head = ["detector", "seen tasks, AUC", "each split", "unseen tasks, AUC", "each split"]
    return markdown(head, rows)


def _each(areas: Sequence[float]) -> str:
    return ", ".join(f"{area:.2f}" for area in areas)


def libero_named(results: Mapping[str, Any]) -> str:
    """What the monitor named, by what was unsound."""
    found = results["named"]["mixture"]
    said = sorted({name for counts in found.values() for name in counts})
    rows = ((truth, *(counts.get(name) for name in said)) for truth, counts in found.items())
    return markdown(["unsound", *(f"named: {name}" for name in said)], rows)


def libero_faults(results: Mapping[str, Any]) -> str:
    """Successes of each arm by fault, and when the loop named what was unsound."""
    found = results["faults"]["mixture"]
    arms = list(next(iter(found.values()))["success"])
    rows = (
        (kind, part["n"], *part["success"].values(), *(part["named"].get(t) for t in TIMES))
        for kind, part in sorted(found.items())
    )
    head = ["fault", "episodes", *(f"{arm} succeeded" for arm in arms)]
    return markdown([*head, *(f"named {t}" for t in TIMES)], rows)


def libero_single(results: Mapping[str, Any]) -> str:
    """One fault in every episode: each arm, and what was named first and when."""
    rows: dict[str, dict[str, Any]] = {}
    for row in results["tables"]["study"]:
        rows.setdefault(row["condition"], {})[row["arm"]] = row
    arms = list(next(iter(rows.values())))
    others = [arm for arm in arms if arm != "mist"]

    def against(other: Mapping[str, float]) -> str:
        return f"{other['won']} / {other['lost']}, p {other['p']:.2g}"

    def line(condition: str, found: Mapping[str, Any]) -> tuple:
        (part,) = results["faults"][condition].values()
        ((truth, said),) = results["named"][condition].items()
        times = [t for t in TIMES if t in part["named"] and truth in INPUTS]
        ordered = sorted(said.items(), key=lambda item: -item[1])
        return (
            condition.replace("_", " "),
            *(_share(found[arm]) for arm in arms),
            *(against(results["won"][condition][arm]) for arm in others),
            ", ".join(f"{name} {count}" for name, count in ordered),
            ", ".join(f"{when} {part['named'][when]}" for when in times),
        )

    head = ["fault", *arms, *(f"mist won / lost against {arm}" for arm in others)]
    return markdown([*head, "named first", "rightly"], (line(*item) for item in rows.items()))


def libero_pro(results: Mapping[str, Any]) -> str:
    """Both arms under each condition, and what the monitor named."""

    def line(condition: str, found: Mapping[str, Any]) -> tuple:
        bare, mist = found["rows"]
        named = ", ".join(f"{name} {count}" for name, count in found["named"].items())
        changed = f"{mist['repaired']} / {mist['broken']}"
        return condition.replace("_", " "), _share(bare), _share(mist), changed, named

    head = ["condition", "bare", "mist", "repaired / broken", "named first, episodes"]
    return markdown(head, (line(*item) for item in results["conditions"].items()))


def _share(row: Mapping[str, Any]) -> str:
    return rate({"k": row["successes"], "n": row["n"]})


def libero_served(results: Mapping[str, Any]) -> str:
    """What openpi's client saw of each fault, episode by episode."""
    head = ["fault", "episodes", "succeeded", "alarmed", "alarm at step", "named then"]

    def row(fault: str, episodes: Sequence[Mapping[str, Any]]) -> tuple:
        alarms = [episode["alarm"] for episode in episodes if episode["alarm"]]
        named = dict.fromkeys(alarm["input"] for alarm in alarms)
        return (
            fault,
            len(episodes),
            sum(episode["success"] for episode in episodes),
            len(alarms),
            ", ".join(str(alarm["step"]) for alarm in alarms),
            ", ".join(named),
        )

    return markdown(head, (row(*found) for found in results["conditions"].items()))


def libero_speed(results: Mapping[str, Any]) -> str:
    """Steps per second of two scenes."""
    head = ["two scenes in", "steps/s", "x the first [95%]"]
    return markdown(
        head,
        (
            (row["arm"], f"{row['steps_per_second']:.1f}", estimate(row["speed"]))
            for row in results["rows"]
        ),
    )


def libero_expert(results: Mapping[str, Any]) -> str:
    """The scripted expert's successes, by suite, and the tasks that it does not do."""

    def row(suite: str, tasks: Mapping[str, Sequence[int | None]]) -> tuple:
        done = {task: sum(step is not None for step in tried) for task, tried in tasks.items()}
        total = {"k": sum(done.values()), "n": sum(map(len, tasks.values()))}
        weak = [
            f"{task.replace('_', ' ').lower()} ({done[task]}/{len(tried)})"
            for task, tried in tasks.items()
            if done[task] < 0.9 * len(tried)
        ]
        return suite, len(tasks), rate(total), "; ".join(weak) or None

    head = ["suite", "tasks played", "success [95%] (k/n)", "tasks below 90%"]
    return markdown(head, (row(*found) for found in results["steps"].items()))


TABLES: Tables = {
    "libero_expert": ("libero_expert", libero_expert),
    "libero": ("libero_policy", libero),
    "libero_both_spatial": ("libero_both_spatial", libero),
    "libero_both_object": ("libero_both_object", libero),
    "libero_detectors": ("libero_policy", libero_detectors),
    "libero_unseen": ("libero_policy", libero_unseen),
    "libero_pro": ("libero_pro", libero_pro),
    "libero_served": ("served_libero", libero_served),
    "libero_faults": ("libero_loop", libero_faults),
    "libero_named": ("libero_loop", libero_named),
    "libero_single": ("libero_single", libero_single),
    "libero_state": ("libero_state", libero_single),
    "libero_speed": ("bench_libero", libero_speed),
}
