"""Events over time: scores of episodes, from when on something is wrong, and how soon that is seen.

A look is one inference. Both areas under the ROC curve compare what an alarm could know: AUC per
timestep compares scores of the same look only, so that a clock has 0.5; by earliest stop, the
highest scores up to the look that the shortest episode has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.metrics import roc_auc

SOON = 10
"""Control steps within which an alarm is called soon."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of some episodes.

    Attributes:
        scores: of every look.
        mask: looks that there were.
        onset_step: control step from which on something is wrong; -1: never.
        steps: control steps from one look to the next.
    """

    scores: Float[np.ndarray, "n t"]
    mask: Bool[np.ndarray, "n t"]
    onset_step: Int[np.ndarray, " n"]
    steps: int = 1

    @property
    def onset(self) -> Int[np.ndarray, " n"]:
        """First look that can show it."""
        return np.where(self.onset_step < 0, -1, -(-self.onset_step // self.steps))

    def alarms(self, threshold: Threshold) -> Bool[np.ndarray, "n t"]:
        """Looks above it."""
        return np.asarray(threshold.alarms(jnp.asarray(self.scores), jnp.asarray(self.mask)))

    def alarmed(self, threshold: Threshold) -> Bool[np.ndarray, " n"]:
        """Episodes with an alarm."""
        return np.asarray(self.alarms(threshold).any(1))

    def __getitem__(self, rows: Any) -> Scored:
        return Scored(self.scores[rows], self.mask[rows], self.onset_step[rows], self.steps)


def together(pieces: Sequence[Scored]) -> Scored:
    """All episodes, padded to the longest."""
    width = max(piece.mask.shape[1] for piece in pieces)

    def padded(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, width - x.shape[1])))

    return Scored(
        np.concatenate([padded(piece.scores) for piece in pieces]),
        np.concatenate([padded(piece.mask) for piece in pieces]),
        np.concatenate([piece.onset_step for piece in pieces]),
        pieces[0].steps,
    )


def _area(positive: np.ndarray, negative: np.ndarray) -> float:
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    return roc_auc(np.concatenate([positive, negative]), labels)


def timestep_auc(positive: Scored, negative: Scored) -> float | None:
    """Mean over looks, weighted by the positives that there are, of the AUC of that look's scores:
    of the positives from their onset on, and of the negatives that are still going on.
    """
    areas, weights = [], []
    for t in range(min(positive.scores.shape[1], negative.scores.shape[1])):
        hot = positive.scores[positive.mask[:, t] & (positive.onset <= t), t]
        cold = negative.scores[negative.mask[:, t], t]
        if len(hot) and len(cold):
            areas.append(_area(hot, cold))
            weights.append(len(hot))
    return float(np.average(areas, weights=weights)) if weights else None


def earliest_auc(positive: Scored, negative: Scored) -> float | None:
    """Of the highest score up to the look that the shortest episode has."""
    if not len(positive.mask) or not len(negative.mask):
        return None
    stop = min(positive.mask.sum(1).min(), negative.mask.sum(1).min())
    peaks = [x.scores[:, :stop].max(1) for x in (positive, negative)]
    return _area(*peaks)


def detection(faulty: Scored, clean: Scored, threshold: Threshold) -> dict[str, Any]:
    """Of faults: how soon, and how many not at all."""
    lengths = faulty.mask.sum(1)
    faulty = faulty[faulty.onset < lengths]
    above = faulty.alarms(threshold)
    looks = np.arange(above.shape[1])
    early = (above & (looks < faulty.onset[:, None])).any(1)
    after = above & (looks >= faulty.onset[:, None])
    found = after.any(1) & ~early
    latency = (faulty.steps * after.argmax(1) - faulty.onset_step)[found]
    return {
        "n": len(early),
        "early": int(early.sum()),
        "missed": int((~after.any(1) & ~early).sum()),
        "within_10_steps": int((latency <= SOON).sum()),
        "median_latency_steps": float(np.median(latency)) if len(latency) else None,
        "auc_per_timestep": timestep_auc(faulty, clean),
        "auc_by_earliest_stop": earliest_auc(faulty, clean),
    }


def failure(scored: Scored, failed: Bool[np.ndarray, " n"], threshold: Threshold) -> dict[str, Any]:
    """Of failed episodes: how well they are told from the others, and how long before the end."""
    whole = dataclasses.replace(scored, onset_step=np.zeros(len(failed), int))
    bad, good = whole[failed], whole[~failed]
    above = bad.alarms(threshold)
    left = bad.steps * (bad.mask.sum(1) - above.argmax(1))[above.any(1)]
    quiet = good.alarmed(threshold)
    return {
        "failed": int(failed.sum()),
        "n": len(failed),
        "detected": int(above.any(1).sum()),
        "median_steps_left": float(np.median(left)) if len(left) else None,
        "false_alarms": int(quiet.sum()),
        "auc_per_timestep": timestep_auc(bad, good),
        "auc_by_earliest_stop": earliest_auc(bad, good),
    }
