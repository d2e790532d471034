"""A policy that also says how else it might have acted: further chunks for the same observation.

Detectors of disagreement (action variance, cluster entropy, STAC, ACE, FIPER) read them. The
executed chunk is that of the bare policy, bit for bit. Cost: samples - 1 further samplings, which
share one prefill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mistjax.hooks.edits import Edit
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import Reporting, acting


@dataclasses.dataclass(frozen=True)
class Resampled(Reporting):
    """Adds `aux["sampled_actions"]` [B,samples,H,A] in model units, the executed chunk first.

    Attributes:
        policy: one that draws its actions; a policy that always does the same shows no
            disagreement.
        samples: chunks per inference; 1 draws the executed one alone.
        dim: numbers of an action to keep; None takes the robot's, which is unknown while the policy
            is traced.
    """

    policy: Policy
    samples: int
    dim: int | None = None

    adds: ClassVar[str] = "sampled_actions"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}: expected at least 1 chunk per inference.")

    def report(
        self,
        first: Sample,
        obs: Observation,
        key: Array,
        state: Any,
        edits: Sequence[Edit],
        prefix: Any,
    ) -> Array:
        """See `Reporting.report`."""
        inner, draws = acting(self.policy), [first.actions]
        for number in range(1, self.samples):
            fold = lambda k, n=number: jax.random.fold_in(k, n)  # noqa: E731
            other = jax.vmap(fold)(key) if key.ndim else fold(key)
            sample = inner.sample(obs, other, state=state, edits=edits, prefix=prefix)
            draws.append(sample.actions)
        dim = self.spec.action_dim if self.dim is None else self.dim
        return jnp.stack(draws, axis=1)[..., :dim]
