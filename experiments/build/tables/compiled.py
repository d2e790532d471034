"""Rollouts in one program: speed, memory and agreement with the host loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.build.tables.cells import Tables, estimate, markdown
from mistjax.stats import Rate


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
                estimate(row["ratio"], 3),
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


def mjx_cost(results: Mapping[str, Any]) -> str:
    """What replaying the expert took under each physics."""

    def row(r: Mapping[str, Any]) -> tuple:
        apart, cost = r["stone_mm"], r["cpu_ms_a_step"]
        off = f"{apart['median']:.2f}", f"{apart['p95']:.2f}"
        return r["against"], *off, f"{r['compiling_s']:.0f}", f"{cost:.3g}"

    head = [
        "physics",
        "stone off, mm",
        "95% of steps",
        "compiling, s",
        "CPU ms a step",
    ]
    return markdown(head, (row(r) for r in results["rows"] if r["condition"] == "expert"))


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


TABLES: Tables = {
    "compilation": ("bench_compile", compilation),
    "gpu_rollouts": ("bench_gpu", gpu_rollouts),
    "gpu_rollouts_h100": ("bench_gpu_h100", gpu_rollouts),
    "gpu_models": ("bench_gpu", gpu_models),
    "kinematic_agreement": ("fit_kinematic", kinematic_agreement),
    "mjx_agreement": ("fit_mjx", kinematic_agreement),
    "mjx_cost": ("fit_mjx", mjx_cost),
    "compiled_cpu": ("bench_jit", compiled_cpu),
    "spread_memory": ("spread_memory", spread_memory),
}
