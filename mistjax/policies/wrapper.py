"""What a policy around another one passes on unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import PolicySpec, RawObs, Sample


class Wrapper:
    """Base of policies around the one in their field `policy`; a subclass has its own `sample`."""

    policy: Any

    @property
    def spec(self) -> PolicySpec:
        return self.policy.spec

    def initial_state(self, batch: int) -> Any:
        return self.policy.initial_state(batch)

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        return self.policy.prepare(raw)

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Any:
        return self.policy.prefill(obs, edits=edits, taps=taps)

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
