"""`Watched`: a policy that also says whether an input is unsound, and which one.

Two alarms are kept apart everywhere. `alarm` is the failure score's: this episode will fail.
`unsound` is the inputs': something that the policy reads, or what its actions do, is not as in
clean episodes, whether or not the episode fails because of it. The actions are those of the
policy inside, bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
from jaxtyping import Array

from mistjax.detect.novelty.monitor import InputEvidence, InputMemory, InputMonitor
from mistjax.detect.novelty.reading import TOKENS, read
from mistjax.envs.faults.battery import input_name
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, PolicySpec, Sample
from mistjax.policies.wrapper import Wrapper, erase_state


@flax.struct.dataclass
class WatchedState:
    """Of the policy inside, and of its inputs."""

    policy: Any
    inputs: InputMemory


@flax.struct.dataclass
class Watched(Wrapper):
    """A policy, bare or a `MistPolicy`, and the monitor of its inputs; itself a `Policy`.

    `Sample.aux` holds of each element `unsound`, `named` (the input named at the first alarm by its
    place in `spec.inputs`, their number for none of them, -1 before), `input_score` and
    `input_threshold`, and the evidence as `evidence/<field of InputEvidence>`.

    Attributes:
        policy: what acts.
        inputs: what watches its inputs.
    """

    policy: Policy
    inputs: InputMonitor

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The policy's, with a fingerprint of its own."""
        spec = self.policy.spec
        names = tuple(input_name(spec.cameras.get(name, name)) for name in self.inputs.inputs)
        return dataclasses.replace(spec.wrapped(spec.name, self.inputs), inputs=names)

    @property
    def reports(self) -> tuple[str, ...]:
        """See `Wrapper.reports`: what a sentence about an alarm is made of."""
        return (*self.policy.reports, *(f"evidence/{name}" for name in EVIDENCE))

    def initial_state(self, batch: int) -> WatchedState:
        return WatchedState(self.policy.initial_state(batch), self.inputs.initial_state(batch))

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Any:
        return self.policy.prefill(obs, edits=edits, taps=_with_tokens(taps))

    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Any = None,
    ) -> Sample:
        """See `Policy.sample`; `state` is `initial_state` or the last sample's."""
        state = self.initial_state(obs.batch_size) if isinstance(state, tuple) else state
        return _sample(self, obs, key, state, tuple(edits), tuple(taps), prefix)


def _with_tokens(taps: Sequence[Tap]) -> tuple[Tap, ...]:
    return tuple(dict.fromkeys((*taps, TOKENS)))


@functools.partial(jax.jit, static_argnames="taps")
def _sample(watched: Watched, obs, key, state: WatchedState, edits, taps, prefix) -> Sample:
    sample = watched.policy.sample(
        obs, key, state=state.policy, edits=edits, taps=_with_tokens(taps), prefix=prefix
    )
    words = erase_state(watched.policy, obs)
    memory, found = watched.inputs.step(state.inputs, read(words, sample.taps[str(TOKENS)]))
    memory = watched.inputs.executed(memory, sample.actions)
    aux = {**sample.aux, **report(found)}
    seen = {str(tap): sample.taps[str(tap)] for tap in taps}
    return Sample(sample.actions, seen, aux, WatchedState(sample.state, memory))


def report(found: InputEvidence) -> dict[str, Array]:
    """What `Sample.aux` says about the inputs."""
    return {
        "unsound": found.unsound,
        "named": found.named,
        "input_score": found.score,
        "input_threshold": found.threshold,
        **{f"evidence/{name}": getattr(found, name) for name in EVIDENCE},
    }


EVIDENCE = ("ratios", "sides", "cells", "entries", "words")
