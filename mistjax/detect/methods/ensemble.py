"""`Ensemble`: the mean of several detectors' scores, each in units of its own spread.

Members that err differently are better together than the best alone, and a z-score is all the
calibration that a mean needs. Costs the sum of its members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct as struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from mistjax.detect.data import Episodes
from mistjax.detect.detector import Leaf, score_episodes


@struct.dataclass
class Ensemble:
    """Mean over members of (score - centre) / scale.

    Attributes:
        detectors: tuple of k members, each reading all features.
        centre: [k] mean score of each on the training steps.
        scale: [k] standard deviation of each there.
    """

    detectors: Any
    centre: Leaf
    scale: Leaf

    def init_state(self, batch: int) -> PyTree:
        return tuple(member.init_state(batch) for member in self.detectors)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        pairs = [m.step(s, features) for m, s in zip(self.detectors, state, strict=True)]
        return tuple(new for new, _ in pairs), self._mean([score for _, score in pairs])

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Mean of the members' evidence in the same units; the score itself where each member's
        score is its evidence.
        """
        return self._mean(
            [m.logit(s, features) for m, s in zip(self.detectors, state, strict=True)]
        )

    def _mean(self, values: list[Array]) -> Array:
        return jnp.mean(
            (jnp.stack(values, axis=-1) - self.centre[None]) / self.scale[None], axis=-1
        )


def combine(detectors: Sequence[Any], episodes: Episodes) -> Ensemble:
    """Ensemble of fitted detectors, in units of their scores on `episodes` before the earliest
    stop, where both outcomes are still running.

    Raises:
        ValueError: no members, or one whose score never changes.
    """
    if not detectors:
        raise ValueError("got no detectors; an ensemble needs at least one.")
    mask = np.asarray(episodes.mask)
    early = mask & (np.arange(mask.shape[1]) < np.asarray(episodes.earliest_stop)[:, None])
    scores = [
        np.asarray(score_episodes(d, jnp.asarray(episodes.features), jnp.asarray(mask)))[early]
        for d in detectors
    ]
    constant = [i for i, s in enumerate(scores) if np.ptp(s) == 0]
    if constant:
        raise ValueError(f"members {constant} score a constant; leave them out.")
    centre, scale = (jnp.asarray([f(s) for s in scores], jnp.float32) for f in (np.mean, np.std))
    return Ensemble(tuple(detectors), centre, scale)
