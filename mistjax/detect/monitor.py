"""`Monitor`: a detector, its threshold and what it reads, stepping beside a policy.

Fail-safe: a NaN or Inf in what the detector reads, in its score or in the actions, or a sample that
its policy reports as undecodable, raises the alarm of that inference, whatever the detector makes
of it; see `detector.observe`. The state belongs to one episode and has a leading batch axis.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.detector import observe
from mistjax.detect.inputs import Input
from mistjax.policies.protocol import Policy, Sample


@flax.struct.dataclass
class MonitorState:
    """What a monitor remembers of each batch element's episode.

    Attributes:
        detector: the detector's own state.
        step: inferences so far.
    """

    detector: Any
    step: Int[Array, " b"]


@flax.struct.dataclass
class Reading:
    """What a monitor says about one inference: failure score (+inf where there is none), its
    threshold, and whether it alarms.
    """

    score: Float[Array, " b"]
    threshold: Float[Array, " b"]
    alarm: Bool[Array, " b"]


@flax.struct.dataclass
class Monitor:
    """Scores every inference of a policy.

    Attributes:
        detector: what scores.
        threshold: the calibrated limit of the score at each inference.
        reads: what the detector reads (static).
    """

    detector: Any
    threshold: Threshold
    reads: Input = flax.struct.field(pytree_node=False)

    def watched(self, policy: Policy) -> Policy:
        """The policy with what the detector reads in its samples, see `Input.watched`."""
        return self.reads.watched(policy)

    def initial_state(self, batch: int) -> MonitorState:
        return MonitorState(self.detector.init_state(batch), jnp.zeros(batch, jnp.int32))

    def step(self, state: MonitorState, sample: Sample) -> tuple[MonitorState, Reading]:
        """Reads one sample of `watched(policy)`, whose taps hold `reads.taps`."""
        detector, score = observe(self.detector, state.detector, self.reads.live(sample))
        alarm = self.threshold.alarm(state.step, score) | jnp.asarray(sample.broken)
        reading = Reading(score, self.threshold.at(state.step), alarm)
        return MonitorState(detector, state.step + 1), reading

    def logit(self, state: MonitorState, sample: Sample) -> Float[Array, " b"]:
        """Differentiable failure evidence of one sample: what attribution explains."""
        return self.detector.logit(state.detector, self.reads.live(sample))
