"""`Metrics`: counters, gauges and latency histograms, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import bisect
import collections
import threading
from collections.abc import Callable, Mapping

BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Upper bounds of the latency histogram's buckets, ms."""
_HELP = {
    "requests_total": "Requests, by how they were answered.",
    "alarms_total": "Replies with an alarm, by kind.",
    "edited_total": "Replies with an edited or repaired chunk.",
    "gated_total": "Replies that the kinematic gate has shrunk.",
    "refused_total": "Frames, connections and observations that were refused.",
    "late_results_total": "Results that came after their reply and were dropped.",
}


class Metrics:
    """Thread-safe counters and latency histograms; `gauges` are read for each scrape."""

    def __init__(self, gauges: Mapping[str, Callable[[], float]]):
        self._gauges = gauges
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._latency: dict[str, list[int]] = {}
        self._sum: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def count(self, name: str, label: str = "") -> None:
        """Increments a counter; the label is `key="value"`, or "" for none."""
        with self._lock:
            self._counts[name, label] += 1

    def observe(self, path: str, milliseconds: float) -> None:
        """Adds one reply's latency to the histogram of its path."""
        with self._lock:
            counts = self._latency.setdefault(path, [0] * (len(BUCKETS) + 1))
            counts[bisect.bisect_left(BUCKETS, milliseconds)] += 1
            self._sum[path] += milliseconds  # type: ignore[assignment]

    def text(self) -> str:
        """The page that is scraped."""
        lines = []
        with self._lock:
            for name, told in _HELP.items():
                lines += [f"# HELP mistjax_{name} {told}", f"# TYPE mistjax_{name} counter"]
                found = {label: n for (key, label), n in self._counts.items() if key == name}
                for label, n in sorted((found or {"": 0}).items()):
                    lines.append(
                        f"mistjax_{name}{{{label}}} {n}" if label else f"mistjax_{name} {n}"
                    )
            lines += [
                "# HELP mistjax_latency_ms From an observation to its reply.",
                "# TYPE mistjax_latency_ms histogram",
            ]
            for path, counts in sorted(self._latency.items()):
                below = 0
                for limit, n in zip((*BUCKETS, "+Inf"), counts, strict=True):
                    below += n
                    lines.append(f'mistjax_latency_ms_bucket{{path="{path}",le="{limit}"}} {below}')
                lines.append(f'mistjax_latency_ms_sum{{path="{path}"}} {self._sum[path]:.3f}')
                lines.append(f'mistjax_latency_ms_count{{path="{path}"}} {below}')
        for name, read in self._gauges.items():
            lines += [f"# TYPE mistjax_{name} gauge", f"mistjax_{name} {read():g}"]
        return "\n".join(lines) + "\n"
