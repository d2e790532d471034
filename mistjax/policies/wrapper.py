"""Policies around another one: what they pass on unchanged, and how to reach what only it can."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Bool, Float

from mistjax.batches import choose
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.config import Pi0Config
from mistjax.models.observation import Observation
from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.protocol import (
    LanguagePolicy,
    Policy,
    PolicySpec,
    RawObs,
    Sample,
    SeeingPolicy,
    StatePromptPolicy,
    TraceablePolicy,
)


class Wrapper(Policy):
    """Base of policies around the one in their field `policy`, which does what they do not say."""

    policy: Policy

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    @property
    def preset(self) -> RobotPreset:
        return self.policy.preset

    @property
    def patch(self) -> tuple[int, int]:
        return self.policy.patch

    @property
    def num_parameters(self) -> int:
        return self.policy.num_parameters

    @property
    def chunk_width(self) -> int:
        return self.policy.chunk_width

    @property
    def reports(self) -> tuple[str, ...]:
        return self.policy.reports

    def initial_state(self, batch: int) -> Any:
        return self.policy.initial_state(batch)

    def begin(self, seeds: Sequence[int]) -> Any:
        return self.initial_state(len(seeds))

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        return self.policy.prepare(raw)

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Any:
        return self.policy.prefill(obs, edits=edits, taps=taps)

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
        return self.policy.sample(obs, key, state=state, edits=edits, taps=taps, prefix=prefix)

    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        return self.policy.finish(sample, raw)

    def objective(
        self,
        obs: Observation,
        key: Array,
        readout: Callable[[Sample], Float[Array, " b"]],
        *,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
    ) -> Float[Array, " b"]:
        """The inner policy's."""
        return self.policy.objective(obs, key, readout, taps=taps, edits=edits)


class Briefed(Wrapper):
    """Base of policies with a state of their own, whose field `policy` is that of the one inside,
    and which pass on to it what it is told of an episode.

    What is told lies between host and program: `brief` runs on the host, `told` may be traced.
    """

    def begin(self, seeds: Sequence[int]) -> Any:
        """See `Policy.begin`."""
        return self.told(self.initial_state(len(seeds)), self.brief(seeds))

    def brief(self, seeds: Sequence[int]) -> Any:
        """What is told of the episodes with these seeds, as arrays [episodes, ...]; see `brief`."""
        return brief(self.policy, seeds)

    def told(self, state: Any, brief: Any) -> Any:
        """An initial state that has been told; one element of `brief` for each of the batch."""
        return dataclasses.replace(state, policy=told(self.policy, state.policy, brief))


def brief(policy: Policy, seeds: Sequence[int]) -> Any:
    """What a policy is told of the episodes with these seeds, for `told`: () where that is nothing,
    and the whole of `Policy.begin` where a policy has its own and does not say more.
    """
    if isinstance(policy, Briefed):
        return policy.brief(seeds)
    alike = type(policy).begin in (Policy.begin, Wrapper.begin)
    return () if alike else policy.begin(seeds)


def told(policy: Policy, state: Any, brief: Any) -> Any:
    """`policy.begin(seeds)`, made of `policy.initial_state(len(seeds))` and what `brief` says."""
    if isinstance(policy, Briefed):
        return policy.told(state, brief)
    return state if isinstance(brief, tuple) and not brief else brief


class Reporting(Wrapper):
    """Base of policies that act as the one inside, bit for bit, and say more of it: a subclass
    names what it `adds` to `Sample.aux`, and finds it in `report`.
    """

    adds: ClassVar[str]

    def report(
        self,
        first: Sample,
        obs: Observation,
        key: Array,
        state: Any,
        edits: Sequence[Edit],
        prefix: Any,
    ) -> Array:
        """What is added to a sample of the policy inside; `prefix` is of `obs` under the edits."""
        raise NotImplementedError

    @property
    def reports(self) -> tuple[str, ...]:
        return (*self.policy.reports, self.adds)

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
        """See `Policy.sample`."""
        if prefix is None:
            prefix = self.policy.prefill(obs, edits=edits, taps=taps)
        first = self.policy.sample(obs, key, state=state, edits=edits, taps=taps, prefix=prefix)
        return self._reported(first, obs, key, state, edits, prefix)

    def objective(
        self,
        obs: Observation,
        key: Array,
        readout: Callable[[Sample], Float[Array, " b"]],
        *,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
    ) -> Float[Array, " b"]:
        """The inner policy's, of a sample with the report."""

        def read(first: Sample) -> Float[Array, " b"]:
            prefix = self.policy.prefill(obs, edits=edits)
            return readout(self._reported(first, obs, key, (), edits, prefix))

        return self.policy.objective(obs, key, read, taps=taps, edits=edits)

    def _reported(self, first: Sample, obs, key, state, edits, prefix) -> Sample:
        found = self.report(first, obs, key, state, edits, prefix)
        return dataclasses.replace(first, aux={**first.aux, self.adds: found})


def acting(policy: Policy) -> Policy:
    """The policy without wrappers that only report more of its samples."""
    while isinstance(policy, Reporting):
        policy = policy.policy
    return policy


def innermost(policy: Policy) -> Any:
    """The policy inside all wrappers."""
    while isinstance(policy, Wrapper):
        policy = policy.policy
    return policy


def language(policy: Policy) -> LanguagePolicy:
    """The language side of a policy, or of the one that it is wrapped around.

    Raises:
        ValueError: it has none; says what is lacking.
    """
    policy = innermost(policy)
    if isinstance(policy, LanguagePolicy):
        return policy
    lacking = [
        name for name in ("tokenizer", "embed_prompt", "value_vectors") if not hasattr(policy, name)
    ]
    raise ValueError(
        f"{type(policy).__name__} has no words to explain or to steer by: it lacks "
        f"{', '.join(lacking)}; see `mistjax.policies.LanguagePolicy`."
    )


def flow_of(policy: Policy) -> Any:
    """The flow policy that a policy is, or is wrapped around: it has `config` and `velocity`, and
    its samples say the velocity of every flow step.

    Raises:
        ValueError: it has no velocity field.
    """
    policy = innermost(policy)
    if not isinstance(getattr(policy, "config", None), Pi0Config):
        raise ValueError(
            f"a {type(policy).__name__} has no velocity field: only flow policies (pi0, pi0.5) "
            "have one."
        )
    return policy


def seeing(policy: Policy) -> SeeingPolicy:
    """The policy whose vision tower runs on its own: this one, or the one inside of it.

    Raises:
        ValueError: it cannot.
    """
    policy = innermost(policy)
    if isinstance(policy, SeeingPolicy):
        return policy
    raise ValueError(
        f"{type(policy).__name__} cannot repair its inputs: its vision tower does not run on "
        "its own. It can watch them; see `mistjax.policies.SeeingPolicy`."
    )


def erase_state(policy: Policy, obs: Observation) -> Observation:
    """An observation of a policy with the words of its prompt alone; as it is, where the prompt
    holds nothing else.
    """
    policy = innermost(policy)
    return policy.erase_state(obs) if isinstance(policy, StatePromptPolicy) else obs


def write_state(policy: Policy, obs: Observation) -> Observation:
    """The inverse of `erase_state`."""
    policy = innermost(policy)
    return policy.write_state(obs) if isinstance(policy, StatePromptPolicy) else obs


def with_words(
    policy: Policy, obs: Observation, changed: Observation, where: Bool[Array, " b"]
) -> Observation:
    """`changed`, whose prompt holds words alone (`erase_state`), as the policy reads it: with its
    state written behind the words of the elements `where`, and the prompt of `obs` in the others.
    """
    new = write_state(policy, changed)
    tokens, mask = choose(
        where,
        (new.tokenized_prompt, new.tokenized_prompt_mask),
        (obs.tokenized_prompt, obs.tokenized_prompt_mask),
    )
    return dataclasses.replace(changed, tokenized_prompt=tokens, tokenized_prompt_mask=mask)


def traceable(policy: Policy) -> TraceablePolicy:
    """The policy that turns arrays into observations and samples into actions inside a compiled
    rollout: this one, or the outermost that can of those that it is wrapped around.

    Raises:
        ValueError: it cannot be traced.
    """
    while isinstance(policy, Wrapper) and not isinstance(policy, TraceablePolicy):
        policy = policy.policy
    if isinstance(policy, TraceablePolicy):
        return policy
    raise ValueError(
        f"{type(policy).__name__} does not run inside a compiled rollout: it prepares observations "
        "on the host alone. Use `run_episodes`; see `mistjax.policies.TraceablePolicy`."
    )
