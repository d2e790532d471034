"""Every benchmark in one go: `python -m experiments.bench`."""

from __future__ import annotations

from experiments.bench import bench_hooks

if __name__ == "__main__":
    bench_hooks.main(bench_hooks.Config())
