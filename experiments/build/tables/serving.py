"""Execution under a delay, and the server under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.build.tables.cells import Tables, estimate, markdown, rate


def realtime(results: Mapping[str, Any]) -> str:
    """Every strategy at every delay that was played."""
    cells, head = results["cells"], ["delay", "strategy", "success", "p against naive"]
    head += ["time, s", "jerk, m/s³", "at borders, mm/s", "elsewhere, mm/s", "still"]

    def shown(found: Mapping[str, Any], digits: int) -> str:
        if found["mean"] is None:
            return "–"
        return estimate([found["mean"], *found["interval"]], digits)

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
        met = found[0] <= aim if below else found[0] >= aim
        aimed = f"{'at most' if below else 'at least'} {aim:g}"
        return [what, aimed, estimate(found), "met" if met else "**missed**"]

    ours = "monitored to bare, p50 of one client"
    most = f"requests/s, {results['most_clients']} clients to one"
    return markdown(
        ["ratio", "aim", "found", ""],
        [
            line(ours, 1.05, results["monitored_to_bare"], True),
            *(line(f"{most}: {a}", 4, found, False) for a, found in results["throughput"].items()),
        ],
    )


def rtc_cost(results: Mapping[str, Any]) -> str:
    """What guidance adds to an inference."""
    return markdown(
        ["strategy", "ms an inference", "to `naive`, wall clock", "to `naive`, CPU time"],
        (
            (f"`{r['strategy']}`", f"{r['ms']:.1f}",
             *(estimate(r[clock]) for clock in ("wall", "cpu")))
            for r in results["rtc"]
        ),
    )  # fmt: skip


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


TABLES: Tables = {
    "realtime": ("realtime", realtime),
    "served": ("bench_serve", served),
    "served_targets": ("bench_serve", served_targets),
    "rtc_cost": ("bench_serve", rtc_cost),
    "soak": ("soak_serve", soak),
}
