"""A policy that also says how else it might have acted: further chunks for the same observation.

Detectors of disagreement (action variance, cluster entropy, STAC, ACE, FIPER) read them. The
executed chunk is that of the bare policy, bit for bit. Cost: samples - 1 further samplings, which
share one prefill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import Wrapper


@dataclasses.dataclass(frozen=True)
class Resampled(Wrapper):
    """Adds `aux["sampled_actions"]` [B,samples,H,A] in model units, the executed chunk first.

    Attributes:
        policy: one that draws its actions; a policy that always does the same shows no
            disagreement.
        samples: chunks an inference; 1 is the executed one alone.
        dim: numbers of an action to keep; None takes the robot's, and cannot be asked for while
            the policy is traced.
    """

    policy: Policy
    samples: int
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples are {self.samples}: expected at least 1 chunk an inference.")

    @property
    def reports(self) -> tuple[str, ...]:
        """See `Wrapper.reports`."""
        return (*super().reports, "sampled_actions")

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
        if prefix is None and self.samples > 1:
            prefix = self.policy.prefill(obs, edits=edits, taps=taps)
        first = self.policy.sample(obs, key, state=state, edits=edits, taps=taps, prefix=prefix)
        return self._with_others(first, obs, key, state, edits, prefix)

    def objective(
        self,
        obs: Observation,
        key: Array,
        readout: Callable[[Sample], Float[Array, " b"]],
        *,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
    ) -> Float[Array, " b"]:
        """The inner policy's, of a sample that has the other chunks too."""

        def read(first: Sample) -> Float[Array, " b"]:
            return readout(self._with_others(first, obs, key, (), edits, None))

        return self.policy.objective(obs, key, read, taps=taps, edits=edits)

    def _with_others(self, first: Sample, obs, key: Array, state, edits, prefix) -> Sample:
        if prefix is None and self.samples > 1:
            prefix = self.policy.prefill(obs, edits=edits)
        draws = [first.actions]
        for number in range(1, self.samples):
            fold = lambda k, n=number: jax.random.fold_in(k, n)  # noqa: E731
            other = jax.vmap(fold)(key) if key.ndim else fold(key)
            sample = self.policy.sample(obs, other, state=state, edits=edits, prefix=prefix)
            draws.append(sample.actions)
        dim = self.spec.action_dim if self.dim is None else self.dim
        chunks = jnp.stack(draws, axis=1)[..., :dim]
        return dataclasses.replace(first, aux={**first.aux, "sampled_actions": chunks})
