"""The tables of docs/results.md and of the README, made from the results of the experiments.

    python -m experiments.build.results_page

A table stands between `<!-- table NAME -->` and `<!-- end -->`; the text around it is by hand. A
test fails when a table is not what its file says.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies.cross_architecture import as_table
from mistjax.stats import Rate
from mistjax.studies.page import loss_rows, table_rows, target_rows
from mistjax.studies.table import Row

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "docs" / "results.md", ROOT / "docs" / "compiled.md", ROOT / "README.md")
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; None is an empty cell."""
    lines = [head, ["---"] * len(head)]
    lines += [["" if cell is None else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval(found: Sequence[float], digits: int = 2) -> str:
    low, high = found
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def known_change(results: Mapping[str, Any]) -> str:
    return as_markdown(results["table"])


def as_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys, the keys above."""
    return markdown(list(rows[0]), ([*row.values()] for row in rows))


def study_rows(results: Mapping[str, Any], part: str) -> list[Row]:
    """The rows of a part of a study."""
    return [Row(**{**row, "interval": tuple(row["interval"])}) for row in results["tables"][part]]


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


def study_targets(results: Mapping[str, Any]) -> str:
    return as_markdown(target_rows(results["targets"]))


def study_losses(results: Mapping[str, Any]) -> str:
    return as_markdown(loss_rows(results["losses"]))


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


def better_than_safe(results: Mapping[str, Any]) -> str:
    def row(name: str, r: Mapping[str, Any]) -> tuple:
        gap = r.get("ensemble_minus_this")
        spread = r["unseen_spread"]
        return (
            name,
            r["splits"],
            f"{r['unseen']:.3f}" + ("" if spread is None else f" ± {spread:.3f}"),
            f"{r['seen']:.3f}",
            None if gap is None else f"{gap:+.3f} {interval(r['its_interval'], 3)}",
            None if gap is None else f"{r['splits_won']} of {r['splits']}",
        )

    table = results["reported"]["table"]
    order = sorted(table, key=lambda name: -table[name]["unseen"])
    head = ["detector", "splits", "unseen tasks", "seen tasks", "ensemble - this", "splits won"]
    return markdown(head, (row(name, table[name]) for name in order))


def board_detectors(results: Mapping[str, Any]) -> str:
    def row(name: str, r: Mapping[str, Any]) -> tuple:
        early = f"{r['roc_auc']:.3f} {interval(r['roc_auc_interval'])}"
        return name, early, f"{r['roc_auc_task_mean']:.3f}", f"{r['roc_auc_full']:.3f}"

    rows = results["detectors"]
    order = sorted(rows, key=lambda name: -rows[name]["roc_auc"])
    head = ["detector", "by earliest stop", "mean over speed words", "whole episodes"]
    return markdown(head, (row(name, rows[name]) for name in order))


def detector_cost(results: Mapping[str, Any]) -> str:
    """Heads only, times for the source's 1000 epochs; distances take milliseconds everywhere."""
    arms = {"ours": "ours", "pytorch": "PyTorch here", "floor": "floor", "original": "original's"}

    def row(name: str, found: Mapping[str, Any]) -> tuple:
        means = found["mean_per_head"]
        seconds = [means[arm]["fit_cpu_s"] * 1000 / found["epochs"] for arm in arms]
        peaks = [f"{means[arm]['peak_mb']:.0f}" for arm in arms if arm != "floor"]
        runs = f"{len(found['seeds'])} of {found['epochs']} epochs"
        loads = found["load_at_each_seed"]
        load = f"{min(loads):.0f} to {max(loads):.0f}"
        return name, runs, load, *(f"{s:.0f}" for s in seconds), " / ".join(peaks)

    head = ["head", "fits", "load", *(f"{arm}, CPU s" for arm in arms.values())]
    head += ["peak MB: ours / PyTorch / original's"]
    return markdown(head, (row(name, found) for name, found in results.items() if found["epochs"]))


def hooks(results: Mapping[str, Any]) -> str:
    def ratio(found: Sequence[float]) -> str:
        return f"{found[0]:.3f} {interval(found[1:], 3)}"

    head = ["model", "arm", "ms", "wall, ratio to bare", "CPU, ratio to bare"]
    return markdown(
        head,
        (
            (r["model"], r["arm"], f"{r['milliseconds']:.3f}", ratio(r["wall"]), ratio(r["cpu"]))
            for r in results["rows"]
        ),
    )


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
        return f"{found['value']:.2f} {interval(found['bootstrap95'])}"

    def row(name: str, found: Mapping[str, Any]) -> tuple:
        areas = area(found["auc"]), area(found["auc_task_mean"])
        rates = ("false_alarms", "detected", "detected_by_earliest_stop")
        return name, *areas, *(rate(found[key]) for key in rates)

    found = results["nominal"]["detection"]["detectors"]
    return markdown(head, (row(name, part) for name, part in found.items()))


def libero_named(results: Mapping[str, Any]) -> str:
    """What the monitor named, by what was unsound."""
    found = results["named"]["mixture"]
    said = sorted({name for counts in found.values() for name in counts})
    rows = ((truth, *(counts.get(name) for name in said)) for truth, counts in found.items())
    return markdown(["unsound", *(f"named: {name}" for name in said)], rows)


def rate(found: Mapping[str, Any]) -> str:
    return str(Rate(found["k"], found["n"]))


def workers(results: Mapping[str, Any]) -> str:
    head = ["worker processes", "steps/s", "ratio to none (quartiles)"]
    return markdown(
        head,
        (
            (r["workers"], f"{r['steps_per_second']:.0f}", f"{r['ratio']:.2f} {quartiles(r)}")
            for r in results["rows"]
        ),
    )


def quartiles(row: Mapping[str, Any]) -> str:
    return f"({row['low']:.2f} to {row['high']:.2f})"


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


def _seeds(row: Mapping[str, Any], *path: str) -> list[Any]:
    found = list(row["seeds"].values())
    for name in path:
        found = [part[name] for part in found]
    return found


FAULT_MIXTURES = {
    "board": "seen",
    "board_unseen_strengths": "unseen strengths",
    "board_unseen_kinds": "unseen kinds",
}


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


def golden_timing(results: Mapping[str, Any]) -> str:
    """*The episode fails*, on unseen tasks of rollouts with known onsets."""

    def line(name: str, splits: Mapping[str, Any]) -> list[str]:
        found = list(splits.values())

        def mean(key: str, shown: str = ".3f") -> str:
            return over_seeds([f[key] for f in found], shown)

        def part(key: str, of: str) -> str:
            return share([(f[key], f[of]) for f in found])

        return [
            name,
            mean("auc_by_earliest_stop"),
            mean("auc_per_timestep"),
            part("false_alarms", "successes"),
            part("early", "n"),
            part("missed", "n"),
            mean("median_latency_steps", ".0f"),
        ]

    rows = results["rows"]

    def area(name: str) -> float:
        return statistics.fmean(f["auc_by_earliest_stop"] for f in rows[name].values())

    head = ["detector", "AUC by earliest stop", "AUC per timestep from the onset", "false alarms"]
    head += ["alarm before the onset", "missed", "median latency, steps"]
    return markdown(head, (line(name, rows[name]) for name in sorted(rows, key=area, reverse=True)))


def quiet(results: Mapping[str, Any]) -> str:
    """Thresholds of the shipped monitors on 400 clean episodes with sensor noise."""
    head = ["threshold", "calibrated on", "rank", "90% of such calibrations have", "alarm wrongly"]
    head += ["clean failures detected", "first alarm under table texture: look 0, 1, later, none"]
    return markdown(
        head,
        (
            (
                r["name"],
                r["calibrated_on"],
                f"{r['rank']} of {r['n']}",
                f"{r['low']:.1%} to {r['high']:.1%}",
                rate(r["false_alarms"]),
                rate(r["detected"]) if r["detected"] else "–",
                " / ".join(map(str, r["first_alarm"])) if r["first_alarm"] else "–",
            )
            for r in results["rows"]
        ),
    )


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


def mist_cost(results: Mapping[str, Any]) -> str:
    head = ["width", "batch", "arm", "ms", "CPU, ratio to bare"]

    def row(r: Mapping[str, Any]) -> tuple:
        shown = f"{r['cpu'][0]:.2f} {interval(r['cpu'][1:])}"
        return r["width"], r["batch"], r["arm"], f"{r['milliseconds']:.2f}", shown

    return markdown(head, map(row, results["rows"]))


def attribution_cost(results: Mapping[str, Any]) -> str:
    """One run of each method and peer, in bare inferences, policy by policy."""
    policies = list(dict.fromkeys(r["policy"] for r in results["rows"]))
    found = {(r["policy"], r["arm"]): r for r in results["rows"]}

    def cell(policy: str, arm: str) -> str:
        if (row := found.get((policy, arm))) is None:
            return "–"
        if arm == "bare":
            return f"{row['milliseconds'] / row['runs']:.1f} ms"
        said = f"{row['cpu'][0]:.2f} {interval(row['cpu'][1:])}"
        if row["target"] is None:
            return said
        met = "met" if row["cpu"][0] <= row["target"] else "missed"
        return f"{said} ({met})"

    arms = dict.fromkeys(r["arm"] for r in results["rows"])
    aim = {r["arm"]: r["target"] for r in results["rows"]}
    rows = [
        (arm, f"≤ {aim[arm]}" if aim[arm] else None, *(cell(policy, arm) for policy in policies))
        for arm in arms
    ]
    return markdown(["a run of", "aim", *policies], rows)


def gpu_rollouts(results: Mapping[str, Any]) -> str:
    parts, host = results["parts"], results["parts"]["host loop"]
    per_second = host["steps_per_second"]
    head = ["program / boards", "steps/s", "x host loop", "episodes/s", "ms a round", "success"]

    def row(name: str, part: Mapping[str, Any]) -> tuple:
        steps = part["steps_per_second"]
        cells = (
            f"{part['episodes_per_second']:,.0f}",
            f"{part['ms_per_round']:.1f}",
            f"{part['success']:.0%}",
        )
        return name, f"{steps:,.0f}", f"{steps / per_second:,.0f}", *cells

    success = f"{host['success']:.0%}"
    alone = "host loop, 8 boards, 2 cores", f"{per_second:,.0f}", "1", None, None, success
    return markdown(head, [alone, *(row(k, v) for k, v in parts.items() if "/" in k)])


def gpu_models(results: Mapping[str, Any]) -> str:
    return markdown(
        ["model", "arm", "ms", "ratio to bare"],
        (
            (
                row["model"],
                row["arm"],
                f"{row['milliseconds']:.1f}",
                f"{row['ratio'][0]:.3f} {interval(row['ratio'][1:], 3)}",
            )
            for part in results["parts"].values()
            if isinstance(part, list)
            for row in part
        ),
    )


def kinematic_agreement(results: Mapping[str, Any]) -> str:
    head = ["condition", "beside MuJoCo", "success there", "success here", "points", "p", "alike"]

    def row(r: Mapping[str, Any]) -> tuple:
        n, moved = r["n"], 100 * (r["other"] - r["mujoco"]) / r["n"]
        rates = str(Rate(r["mujoco"], n)), str(Rate(r["other"], n))
        alike = f"{r['alike'] / n:.0%} ({r['alike']}/{n})"
        return r["condition"], r["against"], *rates, f"{moved:+.1f}", f"{r['p']:.2g}", alike

    return markdown(head, map(row, results["rows"]))


def compiled_cpu(results: Mapping[str, Any]) -> str:
    wall, cpu = results["steps_per_second"], results["steps_per_cpu_second"]
    n, host = results["n"], "host loop"
    success = {host: results["success_host"], "compiled": results["success_jit"]}
    return markdown(
        ["arm", "steps/s", "x host loop", "steps per CPU second", "x host loop", "success"],
        (
            (
                arm,
                f"{wall[arm]:,.0f}",
                f"{wall[arm] / wall[host]:.2f}",
                f"{cpu[arm]:,.0f}",
                f"{cpu[arm] / cpu[host]:.2f}",
                str(Rate(round(success[arm] * n), n)) if arm in success else None,
            )
            for arm in wall
        ),
    )


def beside_openpi(results: Mapping[str, Any]) -> str:
    head = ["model", "arm", "ms", "wall, ratio to openpi", "CPU, ratio to openpi", "difference"]

    def row(r: Mapping[str, Any]) -> tuple:
        wall, cpu = (f"{r[c][0]:.3f} {interval(r[c][1:], 3)}" for c in ("wall", "cpu"))
        off = (
            None
            if r["difference"] is None
            else f"{r['difference']:.0e}"
            if r["difference"]
            else "0"
        )
        return r["model"], r["arm"], f"{r['milliseconds']:.0f}", wall, cpu, off

    return markdown(head, map(row, results["rows"]))


def realtime(results: Mapping[str, Any]) -> str:
    """Every strategy at every delay that was played."""
    cells, head = results["cells"], ["delay", "strategy", "success", "p against naive"]
    head += ["time, s", "jerk, m/s³", "at borders, mm/s", "elsewhere, mm/s", "still"]

    def shown(found: Mapping[str, Any], digits: int) -> str:
        if found["mean"] is None:
            return "–"
        return f"{found['mean']:.{digits}f} {interval(found['interval'], digits)}"

    def row(delay: int, name: str, r: Mapping[str, Any]) -> tuple:
        p = results["p"][str(delay)].get(name)
        said = rate(r["success"]), "–" if p is None else f"{p:.2g}"
        measured = shown(r["seconds"], 2), shown(r["jerk"], 1), shown(r["border"], 0)
        still = f"{r['still']['mean']:.0%}"
        return delay, f"`{name}`", *said, *measured, shown(r["elsewhere"], 0), still

    delays = sorted({int(d) for found in cells.values() for d in found})
    return markdown(
        head, (row(d, n, cells[n][str(d)]) for d in delays for n in cells if str(d) in cells[n])
    )


def served(results: Mapping[str, Any]) -> str:
    """Round trips of every server, by the number of clients."""
    head = ["clients", "arm", "p50, ms", "p99, ms", "requests/s", "CPU, ms a request", "n"]
    return markdown(
        head,
        (
            (r["clients"], r["arm"], f"{r['p50_ms']:.1f}", f"{r['p99_ms']:.1f}",
             f"{r['per_second']:.0f}", f"{r['cpu_ms']:.1f}", r["n"])
            for r in results["rows"]
        ),
    )  # fmt: skip


def served_targets(results: Mapping[str, Any]) -> str:
    """What was aimed at, and what came out."""

    def line(what: str, aim: float, found: Sequence[float], below: bool) -> list[str]:
        value, low, high = found
        met = value <= aim if below else value >= aim
        aimed = f"{'at most' if below else 'at least'} {aim:g}"
        return [what, aimed, f"{value:.2f} [{low:.2f}, {high:.2f}]", "met" if met else "**missed**"]

    ours = "monitored to bare, p50 of one client"
    most = f"requests/s, {results['most_clients']} clients to one"
    return markdown(
        ["ratio", "aim", "found", ""],
        [
            line(ours, 1.05, results["monitored_to_bare"], True),
            *(line(f"{most}: {a}", 4, found, False) for a, found in results["throughput"].items()),
        ],
    )


def soak(results: Mapping[str, Any]) -> str:
    """What honest and hostile clients were told, and the server's memory."""
    said = results["said"]
    refused, late = said.get("honest refused", 0), said.get("honest: late", 0)
    memory = ", ".join(f"{mb:.0f}" for mb in results["memory_mb"])
    attacks = {k: v for k, v in said.items() if not k.startswith("honest")}
    rows = {
        "clients, of them hostile": f"{results['clients']}, {results['hostile']}",
        "seconds": f"{results['seconds']:g}",
        "requests of honest clients": f"{results['requests']:,}",
        "of these refused, late, with an alarm": f"{refused}, {late}, {said['honest: alarms']}",
        "their p50 and p99, ms": f"{results['p50_ms']:.0f}, {results['p99_ms']:.0f}",
        **{name: f"{n:,}" for name, n in attacks.items()},
        "memory in each fifth of the time, MB": memory,
        "growth from the second to the last, MB": f"{results['growth_mb']:+.1f}",
        "serves at the end": "yes" if results["alive"] else "no",
    }
    return markdown(["", "found"], rows.items())


def rtc_cost(results: Mapping[str, Any]) -> str:
    """What guidance adds to an inference."""
    return markdown(
        ["strategy", "ms an inference", "to `naive`, wall clock", "to `naive`, CPU time"],
        (
            (f"`{r['strategy']}`", f"{r['ms']:.1f}",
             *(f"{r[k][0]:.2f} {interval(r[k][1:])}" for k in ("wall", "cpu")))
            for r in results["rtc"]
        ),
    )  # fmt: skip


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
        shuffled = interval(r["shuffled"], 2) if "shuffled" in r else None
        return r["by"], f"{r['auc']:.2f} {interval(r['interval'], 2)}", shuffled

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


def fidelity(results: Mapping[str, Any]) -> str:
    """Pearson's r of each method, policy and kind of change."""
    kinds = list(results["published"])

    def shown(r: Mapping[str, Any], kind: str) -> str | None:
        return None if kind not in r else f"{r[kind][0]:.2f} {interval(r[kind][1:], 2)}"

    rows = [
        (name, r["by"], *(shown(r, kind) for kind in kinds))
        for name, found in results["policies"].items()
        for r in found["rows"]
        if "refused" not in r
    ]
    published = [f"{results['published'][kind]:.2f}" for kind in kinds]
    return markdown(["policy", "by", *kinds], [("the paper's", "iss", *published), *rows])


def nuisance(results: Mapping[str, Any]) -> str:
    """How NMR@10 and success go together over conditions."""

    def row(r: Mapping[str, Any]) -> tuple:
        pearson = f"{r['pearson']:+.2f} {interval(r['interval'], 2)}"
        return r["over"], r["n"], pearson, f"{r['spearman']:+.2f}"

    rows = [("the paper's", None, f"{results['published']:+.2f}", None)]
    return markdown(
        ["over", "conditions", "Pearson", "Spearman"], [*rows, *map(row, results["correlations"])]
    )


def spread_memory(results: Mapping[str, Any]) -> str:
    """What a device holds and sends, by number of devices and size of a group."""
    sizes = ("weights_gb", "cached_gb", "sent_weights_gb", "sent_activations_gb")
    head = ["devices", "`fsdp`", "environments", "weights a device", "cached a device"]
    head += ["sent: weights", "or activations"]

    def row(r: Mapping[str, Any]) -> tuple:
        counts = r["devices"], r["fsdp"], f"{r['environments']:,}"
        return *counts, *(f"{r[name]:.2f} GB" for name in sizes)

    return markdown(head, map(row, results["rows"]))


def compilation(results: Mapping[str, Any]) -> str:
    """How long programs take to compile, and their memory."""

    def row(r: Mapping[str, Any]) -> tuple:
        sizes = (f"{r[name] / 1e6:.1f} MB" for name in ("bytes_per_environment", "bytes"))
        return r["policy"], f"{r['first_s']:.0f}", f"{r['cached_s']:.0f}", *sizes

    head = ["policy", "compiling, s", "cached, s", "an environment", "the program"]
    return markdown(head, map(row, results["rows"]))


TABLES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "known_change": ("known_change", known_change),
    "study_mixture": ("full_mist", study_part("mixture")),
    "study_summary": ("full_mist", study_summary),
    "study_controls": ("full_mist", study_part("controls")),
    "study_robust": ("full_mist", study_part("robust")),
    "study_loop": ("full_mist", study_part("loop")),
    "study_failures": ("full_mist", study_part("failure_monitor")),
    "study_conditions": ("full_mist", study_conditions),
    "study_targets": ("full_mist", study_targets),
    "study_losses": ("full_mist", study_losses),
    "repair": ("repair", repair),
    "dose": ("steering_dose", dose),
    "sparse_arms": ("sparse_features", sparse_arms),
    "sparse_predictors": ("sparse_features", sparse_predictors),
    "perturbations": ("perturbations", perturbations),
    "fidelity": ("fidelity", fidelity),
    "nuisance": ("nmr", nuisance),
    "compilation": ("bench_compile", compilation),
    "architectures": ("cross_architecture", as_table),
    "better_than_safe": ("better_than_safe", better_than_safe),
    "board_detectors": ("board_detector", board_detectors),
    "libero": ("libero_policy", libero),
    "libero_detectors": ("libero_policy", libero_detectors),
    "libero_loop": ("libero_loop", study_part("study")),
    "libero_named": ("libero_loop", libero_named),
    "detector_cost": ("bench_detect", detector_cost),
    "hooks": ("bench_hooks", hooks),
    "hooks_sequential": ("bench_hooks_sequential", hooks),
    "workers": ("bench_workers", workers),
    "gpu_rollouts": ("bench_gpu", gpu_rollouts),
    "gpu_rollouts_h100": ("bench_gpu_h100", gpu_rollouts),
    "gpu_models": ("bench_gpu", gpu_models),
    "fault_detectors": ("fault_detectors", fault_detectors),
    "failure_detectors": ("fault_detectors", failure_detectors),
    "faults_by_detector": ("fault_detectors", faults_by_detector),
    "golden_timing": ("golden_timing", golden_timing),
    "quiet": ("quiet", quiet),
    "fault_groups": ("faults", fault_groups),
    "fault_explanations": ("fault_explanations", fault_explanations),
    "fault_names": ("fault_explanations", fault_names),
    "fault_within": ("fault_explanations", fault_within),
    "mist_cost": ("bench_mist", mist_cost),
    "attribution_cost": ("bench_attribute", attribution_cost),
    "kinematic_agreement": ("fit_kinematic", kinematic_agreement),
    "realtime": ("realtime", realtime),
    "served": ("bench_serve", served),
    "served_targets": ("bench_serve", served_targets),
    "rtc_cost": ("bench_serve", rtc_cost),
    "soak": ("soak_serve", soak),
    "compiled_cpu": ("bench_jit", compiled_cpu),
    "spread_memory": ("spread_memory", spread_memory),
    "beside_openpi": ("bench_openpi", beside_openpi),
}


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
