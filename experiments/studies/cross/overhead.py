"""What a monitor costs: wall time of one inference, bare and monitored, in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mistjax.detect.monitor import Monitor
from mistjax.policies.protocol import Policy, RawObs
from mistjax.recover.mist import MistPolicy


def overhead_row(
    policy: Policy, monitor: Monitor, raw: Sequence[RawObs], repeats: int
) -> dict[str, Any]:
    """Milliseconds of prepare, sample and finish at batch 1: median and quartiles of `repeats`,
    and whether the two gave the same actions.
    """
    arms = {"bare": policy, "monitored": MistPolicy(policy, monitor, None, "monitor")}
    times: dict[str, list[float]] = {name: [] for name in arms}
    same = True
    for i in range(repeats + 2):  # the first two compile and warm up
        seen, key = [raw[i % len(raw)]], jax.random.key(i)
        actions = {}
        for name, arm in arms.items():
            start = time.perf_counter()
            sample = arm.sample(arm.prepare(seen), key)
            jax.block_until_ready(sample)
            actions[name] = arm.finish(sample, seen)
            times[name].append(1e3 * (time.perf_counter() - start))
        same &= bool(np.array_equal(actions["bare"], actions["monitored"]))
    rows = {name: np.quantile(ms[2:], (0.25, 0.5, 0.75)).tolist() for name, ms in times.items()}
    return {"ms quartiles": rows, "repeats": repeats, "same actions": same}
