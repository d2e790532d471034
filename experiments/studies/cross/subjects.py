"""Who is compared: the board's policies, their recorded episodes and their failure detectors.

Every policy runs the same seeds through the same harness, and every detector is fitted with the
same recipe to the policy's own features.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies.known_change import PERTURBATION
from mistjax.demo import SHIPPED
from mistjax.detect.calibration.conformal import Threshold, calibrate
from mistjax.detect.detector import score_episodes
from mistjax.detect.from_runs import episodes_from_runs
from mistjax.detect.inputs import DEFAULT_INPUT
from mistjax.detect.metrics import peak, roc_auc
from mistjax.detect.monitor import Monitor
from mistjax.detect.registry import fit_detector
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import summarize
from mistjax.rollouts.trace import Trace
from mistjax.stats import bootstrap

CONDITIONS: dict[str, dict[str, float]] = {"nominal": {}, "perturbed": PERTURBATION}
TRAINING_SEED, TEST_SEED = 1_000_000, 4_000_000


@dataclasses.dataclass(frozen=True)
class Subject:
    """A policy by name; `folder` may not exist yet.

    Attributes:
        name: in tables.
        folder: checkpoint.
    """

    name: str
    folder: Path

    def load(self) -> Any:
        return load_policy(self.folder)


SUBJECTS = (
    Subject("pi0", SHIPPED / "board_pi0"),
    Subject("pi0-FAST", SHIPPED / "board_fast"),
    Subject("OpenVLA-OFT", SHIPPED / "board_openvla"),
    Subject("SmolVLA", SHIPPED / "board_smolvla"),
)


def speed_word(trace: Trace) -> str:
    """Episodes with the same speed word have similar lengths: what counts as one task."""
    return json.loads(trace.task)["speed"]


def record(policy: Policy, folder: Path, purpose: str, episodes: int) -> dict[str, Run]:
    """Episodes for `training` or `test`, by condition; both conditions share the test's seeds."""
    first = {"training": TRAINING_SEED, "test": TEST_SEED}[purpose]
    apart = 50_000 if purpose == "training" else 0
    return {
        condition: collect(
            policy,
            folder / f"{purpose}_{condition}",
            episodes=episodes,
            first_seed=first + (apart if perturbation else 0),
            perturbation=perturbation,
            taps=DEFAULT_INPUT.taps,
            num_envs=16,
        )
        for condition, perturbation in CONDITIONS.items()
    }


def success_rows(runs: dict[str, Run]) -> dict[str, dict[str, Any]]:
    """Condition -> successes, episodes and the Wilson interval."""
    rows = {}
    for condition, run in runs.items():
        found = summarize(run)
        rate = found.success
        rows[condition] = {
            "k": rate.k,
            "n": rate.n,
            "interval": list(rate.interval),
            "errors": found.errors,
            "causes": dict(found.causes),
        }
    return rows


def fit_monitor(training: Sequence[Run]) -> Monitor:
    """SAFE's MLP on the default features, with a threshold from its own training successes: good
    for timing and for scores, not for a promise about alarms.
    """
    episodes = episodes_from_runs(training, DEFAULT_INPUT, group=speed_word)
    detector = fit_detector("safe_mlp", episodes, standardised=True)
    scores = np.asarray(score_episodes(detector, episodes.features, episodes.mask))
    threshold: Threshold = calibrate(scores, episodes.mask, episodes.success, 0.1)
    return Monitor(detector, threshold, DEFAULT_INPUT)


def detection_row(monitor: Monitor, test: Sequence[Run]) -> dict[str, Any]:
    """ROC-AUC on held-out seeds by earliest stop and over whole episodes, bootstrapped over
    episodes.
    """
    episodes = episodes_from_runs(test, DEFAULT_INPUT, group=speed_word)
    scores = np.asarray(score_episodes(monitor.detector, episodes.features, episodes.mask))
    failed = ~np.asarray(episodes.success, bool)
    row: dict[str, Any] = {"n": len(failed), "failures": int(failed.sum())}
    for name, stop in (("early", episodes.earliest_stop), ("full", episodes.lengths)):
        top = peak(scores, stop)
        row[name] = roc_auc(top, failed)
        interval = bootstrap(lambda i, top=top: roc_auc(top[i], failed[i]), len(failed))
        row[f"{name} interval"] = list(interval)
    return row
