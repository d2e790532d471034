"""What is asked of a recorded episode: the readout of any of its inferences.

- `score`      the failure score of a detector
- `action`     what keeps the chunk as it is; for methods that intervene, as it has no gradient
- an action dimension by name, such as `dz`: its mean over the steps that are executed
- `prompt`     the difference from the chunk under another prompt, on the same noise
- `tokens`     the log-probability of the tokens that were written, of policies that write tokens
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mistjax.attribute.readouts import (
    ActionContrast,
    ActionKept,
    ActionValue,
    FailureScore,
    Readout,
    TokenLogProbability,
)
from mistjax.detect.detector import observe
from mistjax.detect.monitor import Monitor
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, RawObs, WritingPolicy
from mistjax.rollouts.trace import Trace

SCORE, ACTION, PROMPT, TOKENS = "score", "action", "prompt", "tokens"
_FLAT = ("saliency", "gradient_x_input", "integrated_gradients")


@dataclasses.dataclass(frozen=True)
class Question:
    """See the module.

    Attributes:
        of: what is explained.
        prompt: the other prompt, for `prompt` alone.
    """

    of: str = SCORE
    prompt: str | None = None

    def check(self, policy: Policy, methods: Sequence[str], monitored: bool) -> None:
        """ValueError for a question that these methods cannot answer of this policy, with or
        without a detector."""
        spec, writes = policy.spec, isinstance(policy, WritingPolicy)
        known = (SCORE, ACTION, PROMPT, *([TOKENS] if writes else []), *spec.action_names)
        if self.of not in known:
            raise ValueError(f"nothing is called {self.of!r}: explain one of {', '.join(known)}.")
        if (self.of == PROMPT) != (self.prompt is not None):
            raise ValueError(
                f"what is explained is {self.of!r} and the other prompt {self.prompt!r}: the "
                "difference from another prompt needs one, and nothing else does."
            )
        if self.of == SCORE and not monitored:
            raise ValueError(
                "a failure score is a detector's: give its folder, or explain something else, "
                f"such as {ACTION!r} or {spec.action_names[0]!r}."
            )
        wrong = ", ".join(name for name in methods if name in _FLAT)
        if wrong and writes and self.of not in (SCORE, TOKENS):
            raise ValueError(
                f"{wrong}: an action that is written as tokens has no gradient; choose occlusion "
                f"or iss, or explain {TOKENS!r}."
            )
        if wrong and self.of == ACTION:
            raise ValueError(
                f"{wrong}: how far a chunk moves has no gradient where it is; choose occlusion or "
                "iss, or an action dimension."
            )

    def asked(self, policy: Policy, obs: Observation, key: Array) -> Policy:
        """The policy whose samples the readout reads: this one, or the one that says its tokens."""
        if self.of == TOKENS and isinstance(policy, WritingPolicy):
            return policy.saying(obs, key)
        return policy

    def readout(
        self,
        policy: Policy,
        raw: Sequence[RawObs],
        obs: Observation,
        key: Array,
        detector: tuple[Monitor, Any] | None,
    ) -> Readout:
        """Of a batch of moments.

        Args:
            policy: the policy.
            raw: its raw observations.
            obs: the same, prepared.
            key: of the sampling noise.
            detector: monitor, and its detector's state before each of them [B,...].
        """
        if self.of == SCORE:
            assert detector is not None  # see `check`
            return FailureScore(detector[0].detector, detector[1], detector[0].reads)
        if self.of == TOKENS:
            return TokenLogProbability()
        if self.of in policy.spec.action_names:
            spec = policy.spec
            weights = np.zeros((spec.action_horizon, policy.chunk_width), np.float32)
            weights[: spec.execute_steps, spec.action_names.index(self.of)] = 1 / spec.execute_steps
            return ActionValue(jnp.asarray(weights), self.of)
        own = policy.sample(obs, key).actions
        if self.of == ACTION:
            return ActionKept(own)
        other = policy.prepare([{**row, "prompt": self.prompt} for row in raw])
        reference = policy.sample(other, key).actions
        return ActionContrast(reference, own - reference)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A detector run over a recorded episode.

    Attributes:
        trace: the episode with its scores, thresholds and alarms.
        states: the detector's state before each inference.
    """

    trace: Trace
    states: list[Any]

    @property
    def moment(self) -> int:
        """The first alarm, or the highest score where there is none."""
        assert self.trace.alarm is not None and self.trace.score is not None
        alarm = self.trace.alarm
        return int(np.argmax(alarm) if alarm.any() else np.argmax(self.trace.score))


def scored(monitor: Monitor, trace: Trace) -> Scored:
    """Runs a detector over an episode of any policy that was recorded with the detector's taps.

    Raises:
        ValueError: the taps were not recorded, or have another size.
    """
    features = jnp.asarray(monitor.reads.recorded(trace))
    state, states, scores = monitor.initial_state(1).detector, [], []
    try:
        jax.eval_shape(monitor.detector.step, state, features[:1])
    except (TypeError, ValueError):
        raise ValueError(
            f"episode {trace.seed} has {features.shape[1]} numbers per inference, and the detector "
            "reads another count: expected an episode of the policy and taps that trained it."
        ) from None
    for row in features:
        states.append(state)
        state, score = observe(monitor.detector, state, row[None])
        scores.append(score)
    score = jnp.concatenate(scores)
    steps = jnp.arange(len(score))
    found = dataclasses.replace(
        trace,
        score=np.asarray(score),
        threshold=np.asarray(monitor.threshold.at(steps)),
        alarm=np.asarray(monitor.threshold.alarm(steps, score)),
        edited=np.zeros(len(score), bool),
    )
    return Scored(found, states)


def joined(states: Sequence[Any]) -> Any:
    """States of single batch elements as one of a batch."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)


def raw_observation(policy: Policy, trace: Trace, inference: int) -> RawObs:
    """What the policy saw at an inference of an episode recorded with pictures.

    Raises:
        ValueError: the episode has no pictures or no such inference, or the preset joins its state
            from several keys.
    """
    preset = policy.preset
    if not trace.images:
        raise ValueError(
            f"episode {trace.seed} was recorded without pictures: collect it with --videos."
        )
    if not 0 <= inference < len(trace.inference_step):
        last = len(trace.inference_step) - 1
        raise ValueError(f"episode {trace.seed} has inferences 0 to {last}, not {inference}.")
    if not isinstance(preset.state_key, str):
        raise ValueError(
            f"preset {preset.name!r} joins its state from {preset.state_key}, and an episode holds "
            "it as one vector: its observations cannot be shown to the policy again."
        )
    images: Mapping[str, Any] = {key: frames[inference] for key, frames in trace.images.items()}
    state = trace.state[trace.inference_step[inference]]
    return {**images, preset.state_key: state, "prompt": trace.prompt}
