"""Every applicable detector on recorded runs: `run_bench(BenchConfig(...))` trains, calibrates and
scores them on the same split, and writes a table, a CSV and a page.
"""

from mistjax.detect.bench.config import BenchConfig
from mistjax.detect.bench.run import run_bench

__all__ = ["BenchConfig", "run_bench"]
