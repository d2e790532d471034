"""Recorded clean runs in, remedies on disk out: `mistjax fit-imputer`, `mistjax fit-reckoning`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.build import refuse_unclean
from mistjax.detect.novelty.fit import recorded
from mistjax.hooks.sites import PROJECTED, Tap
from mistjax.models.siglip import project
from mistjax.policies.pi import PiPolicy
from mistjax.policies.protocol import Policy, PolicySpec
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace
from mistjax.steer.remedies.artifact import RepairConfig, save_reckoning, save_repairs
from mistjax.steer.remedies.fit_imputer import Unexplained, fit_imputer
from mistjax.steer.remedies.fit_sighted import fit_sighted
from mistjax.steer.remedies.sighted import SightedReckoning

TAP = Tap(PROJECTED, None, "image")
"""What an imputer is fitted to, where the monitor's own tokens are too coarse."""


def build_imputer(
    policy: Policy,
    runs: Sequence[Run],
    out: Path,
    *,
    config: RepairConfig = RepairConfig(),
    **options: Any,
) -> tuple[Unexplained, ...]:
    """Fits an imputer and writes it, with the other remedies' settings, beside a monitor of inputs.

    Args:
        policy: what was recorded.
        runs: clean episodes, recorded with what the policy reads.
        out: folder with `inputs.json`.
        config: how far and how long to repair.
        **options: see `fit_imputer`.

    Returns:
        the share of each camera's variance that stays unexplained in held-out episodes.

    Raises:
        FileNotFoundError: no monitor of inputs in `out`.
        ValueError: a run of another policy or with faults, or one that was recorded without the
            image tokens.
    """
    monitor = load_inputs(out, policy.spec.fingerprint)
    refuse_unclean(policy.spec, runs)
    traces = [trace for run in runs for trace in run.traces()]
    states = [np.asarray(trace.aux["read/state"]) for trace in traces]
    width = monitor.state_mean.shape[0]
    imputer, said = fit_imputer(
        monitor.cameras,
        np.concatenate([image_tokens(policy, trace) for trace in traces]),
        np.concatenate(states)[:, :width].astype(np.float32),
        np.repeat(np.arange(len(traces)), [len(rows) for rows in states]),
        **options,
    )
    notes = {
        "fitted_to": [str(run.path) for run in runs],
        "episodes": len(traces),
        "unexplained": {s.camera: {"imputed": s.imputed, "held": s.held} for s in said},
    }
    save_repairs(out, imputer, config, policy.spec.fingerprint, notes)
    return said


def build_reckoning(
    policy: Policy, runs: Sequence[Run], out: Path, *, reckoned: Sequence[Run] = (), seed: int = 0
) -> tuple[SightedReckoning, Float[np.ndarray, " s"]]:
    """Fits what a state is reckoned by, and writes it beside a monitor of inputs, whose linear
    model it is reckoned by until then.

    Args:
        policy: what was recorded.
        runs: clean episodes, recorded with what the policy reads.
        out: folder with `inputs.json`.
        reckoned: others, in which the policy acted on a reckoned state (`recover.reckoned`).
        seed: of the networks.

    Returns:
        see `fit_sighted`.

    Raises:
        FileNotFoundError: no monitor of inputs in `out`.
        ValueError: a run of another policy or with faults, one recorded without what it read, or
            too few episodes.
    """
    monitor = load_inputs(out, policy.spec.fingerprint)
    refuse_unclean(policy.spec, runs)
    refuse_unclean(reckoned_spec(policy.spec), reckoned)
    kinds = (runs, reckoned) if reckoned else (runs,)
    traces = [[trace for run in kind for trace in run.traces()] for kind in kinds]
    parts = [recorded(part) for part in traces]
    starts = [[(trace.task, trace.seed) for trace in part] for part in traces]
    remedy, alone = fit_sighted(monitor, *parts, starts=starts, seed=seed)
    notes = {
        "fitted_to": [str(run.path) for run in (*runs, *reckoned)],
        "episodes": [len(part.mask) for part in parts],
        "usual": np.asarray(remedy.usual).tolist(),
        "usual_by_commands_alone": alone.tolist(),
    }
    save_reckoning(out, remedy, policy.spec.fingerprint, notes)
    return remedy, alone


def reckoned_spec(spec: PolicySpec) -> PolicySpec:
    """Of the policy while it acts on a reckoned state, whatever that is reckoned by."""
    return spec.wrapped(f"{spec.name} on a reckoned state (`mistjax collect --reckoned`)", ())


def image_tokens(policy: Any, trace: Trace) -> Float[np.ndarray, "n c t"]:
    """Projected image tokens of a recorded episode, flat for each camera.

    Raises:
        ValueError: they were not recorded.
    """
    recorded = trace.features.get(str(TAP))
    if recorded is None:
        read = trace.aux.get("read/tokens")
        if not _all_projectable(policy, read):
            raise ValueError(
                f"episode {trace.seed} was recorded without the image tokens: record it with "
                f"`mistjax collect --inputs --taps {TAP}`."
            )
        params = policy.variables["params"]["PaliGemma"]["img"]
        recorded = np.asarray(project(params, read), np.float32)
    cameras = len(policy.spec.pictures)
    return np.asarray(recorded, np.float32).reshape(len(recorded), cameras, -1)


def _all_projectable(policy: Policy, read: np.ndarray | None) -> bool:
    """Whether every token of the vision tower was read, and the projector is at hand."""
    if read is None or not isinstance(policy, PiPolicy):
        return False
    return read.shape[1] * read.shape[2] == policy.config.num_image_tokens
