"""Recorded clean runs in, a calibrated monitor of inputs on disk out: `mistjax fit-inputs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mistjax.detect.novelty.artifact import save_inputs
from mistjax.detect.novelty.fit import calibrate_inputs, fit_inputs, recorded_runs
from mistjax.detect.novelty.monitor import InputMonitor
from mistjax.policies.protocol import Policy, PolicySpec
from mistjax.rollouts.run import Run


def build_inputs(
    policy: Policy,
    runs: Sequence[Run],
    calibration: Sequence[Run],
    out: Path,
    *,
    alpha: float = 0.1,
    confidence: float | None = 0.95,
    **options: Any,
) -> InputMonitor:
    """Fits, calibrates and writes a monitor.

    Args:
        policy: what was recorded.
        runs: clean episodes, to fit to.
        calibration: others, for the threshold.
        out: folder of the artefact.
        alpha: bound on the chance of any alarm in a clean episode.
        confidence: share of calibrations for which it holds; None bounds their average.
        **options: see `fit_inputs`.

    Raises:
        ValueError: a run of another policy or with faults, an episode in both sets, one recorded
            without what the policy reads, or too few episodes.
    """
    refuse_unclean(policy.spec, (*runs, *calibration))
    seeds = [
        {(row["seed"], row["task"]) for run in part for row in run.rows}
        for part in (runs, calibration)
    ]
    if both := seeds[0] & seeds[1]:
        raise ValueError(
            f"{len(both)} episodes are in both sets (seed {min(both)[0]}): the bound holds for "
            "episodes that the monitor was not fitted to."
        )
    monitor = fit_inputs(policy, recorded_runs(runs), **options)
    monitor = calibrate_inputs(monitor, recorded_runs(calibration), alpha, confidence)
    notes = {
        "fitted_to": [str(run.path) for run in runs],
        "calibrated_on": [str(run.path) for run in calibration],
        "episodes": [sum(len(run.finished) for run in part) for part in (runs, calibration)],
    }
    save_inputs(out, monitor, policy.spec.fingerprint, notes)
    return monitor


def refuse_unclean(policy: PolicySpec, runs: Sequence[Run]) -> None:
    """ValueError for a run of another policy, or one in which something was changed on purpose."""
    for run in runs:
        if run.config["policy_fingerprint"] != policy.fingerprint:
            raise ValueError(f"{run.path} was recorded with another policy than {policy.name}.")
        faulty = [row["seed"] for row in run.rows if row["info"].get("fault")]
        if faulty or run.config.get("perturbation"):
            raise ValueError(
                f"{run.path} is not clean ({len(faulty)} episodes with faults, perturbation "
                f"{run.config.get('perturbation')}): what is ordinary is learned from clean ones."
            )
