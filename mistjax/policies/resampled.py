"""A policy that also says how else it might have acted: further chunks for the same observation.

Detectors of disagreement (action variance, cluster entropy, STAC, ACE, FIPER) read them. The
executed chunk is that of the bare policy, bit for bit. Cost: samples - 1 further samplings, which
share one prefill where nothing is edited.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

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
        samples: chunks an inference, at least 2.
    """

    policy: Policy
    samples: int

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"disagreement needs at least 2 samples; got {self.samples}.")

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
        policy = self.policy
        first = policy.sample(obs, key, state=state, edits=edits, taps=taps, prefix=prefix)
        if prefix is None and not edits:
            prefix = policy.prefill(obs)
        draws = [first.actions]
        for number in range(1, self.samples):
            fold = lambda k, n=number: jax.random.fold_in(k, n)  # noqa: E731
            other = jax.vmap(fold)(key) if key.ndim else fold(key)
            draws.append(policy.sample(obs, other, state=state, edits=edits, prefix=prefix).actions)
        chunks = jnp.stack(draws, axis=1)[..., : self.spec.action_dim]
        return dataclasses.replace(first, aux={**first.aux, "sampled_actions": chunks})
