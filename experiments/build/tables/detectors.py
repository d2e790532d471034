"""Detectors of failures, and how often they alarm wrongly."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from experiments.build.tables.cells import Tables, interval, markdown, over_seeds, rate, share


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


TABLES: Tables = {
    "better_than_safe": ("better_than_safe", better_than_safe),
    "board_detectors": ("board_detector", board_detectors),
    "golden_timing": ("golden_timing", golden_timing),
    "quiet": ("quiet", quiet),
}
