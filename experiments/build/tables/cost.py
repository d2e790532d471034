"""What hooks, monitors, attributions, detectors and worker processes cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.build.tables.cells import Tables, estimate, markdown

CLOCKS = ("wall", "cpu")


def hooks(results: Mapping[str, Any]) -> str:
    head = ["model", "arm", "ms", "wall, ratio to bare", "CPU, ratio to bare"]
    return markdown(
        head,
        (
            (r["model"], r["arm"], f"{r['milliseconds']:.3f}", *(estimate(r[c], 3) for c in CLOCKS))
            for r in results["rows"]
        ),
    )


def mist_cost(results: Mapping[str, Any]) -> str:
    head = ["width", "batch", "arm", "ms", "CPU, ratio to bare"]

    def row(r: Mapping[str, Any]) -> tuple:
        return r["width"], r["batch"], r["arm"], f"{r['milliseconds']:.2f}", estimate(r["cpu"])

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
        said = estimate(row["cpu"])
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


AIMS = {"wrapped, one edit": 1.05, "ours": 0.65}
"""Arm -> the most of openpi's computing that it should take."""


def beside_openpi(results: Mapping[str, Any]) -> str:
    head = ["model", "prefix, tokens", "arm", "n", "ms"]
    head += ["wall, ratio to openpi", "CPU, ratio to openpi", "aim", "difference"]

    def row(model: str, turns: int, r: Mapping[str, Any]) -> tuple:
        aim, off = AIMS.get(r["arm"]), r["difference"]
        return (
            model,
            r["prefix"],
            r["arm"],
            turns,
            f"{r['milliseconds']:.0f}",
            *(estimate(r[c], 3) for c in CLOCKS),
            aim and f"{aim}: {'met' if r['cpu'][0] <= aim else 'missed'}",
            None if off is None else f"{off:.0e}" if off else "0",
        )

    models = results["models"].items()
    return markdown(head, (row(m, found["turns"], r) for m, found in models for r in found["rows"]))


TABLES: Tables = {
    "detector_cost": ("bench_detect", detector_cost),
    "hooks": ("bench_hooks", hooks),
    "hooks_sequential": ("bench_hooks_sequential", hooks),
    "workers": ("bench_workers", workers),
    "mist_cost": ("bench_mist", mist_cost),
    "attribution_cost": ("bench_attribute", attribution_cost),
    "beside_openpi": ("bench_openpi", beside_openpi),
}
