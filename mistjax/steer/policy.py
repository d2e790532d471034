"""`SteeredPolicy`: a policy with an edit in force from a chosen inference on, whatever happens.

The open-loop counterpart of `recover.MistPolicy`: no monitor decides, so it measures what a
direction does, how strongly and how early it must act. Itself a `Policy`; one jitted program, and
neither another edit nor another moment recompiles it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mistjax.hooks.edits import Edit
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.sites import Tap
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy, PolicySpec, Sample
from mistjax.policies.wrapper import Wrapper
from mistjax.steer.artifact import load_steering
from mistjax.steer.schedules import Schedule, constant, is_strength


@flax.struct.dataclass
class SteeredPolicy(Wrapper):
    """A policy under an edit.

    Attributes:
        policy: the bare policy, a pytree.
        edit: what is changed, at its full strength.
        onset: inferences without the edit at the start of an episode.
        schedule: share of the strength by inferences since the onset.
        name: for tables (static).
    """

    policy: Policy
    edit: Edit
    onset: Int[Array, ""] | int = 0
    schedule: Schedule = flax.struct.field(default_factory=lambda: constant(1.0))
    name: str = flax.struct.field(pytree_node=False, default="steered")

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The bare policy's, with a name and a fingerprint of its own."""
        return self.policy.spec.wrapped(self.name, (self.edit, self.onset, self.schedule))

    def initial_state(self, batch: int) -> Int[Array, " b"]:
        """Inferences so far."""
        return jnp.zeros(batch, jnp.int32)

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> None:
        """Nothing: `sample` decides when the edit acts."""

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
        if prefix is not None:
            raise ValueError("`sample` decides when the edit acts: call it without prefix.")
        state = self.initial_state(obs.batch_size) if isinstance(state, tuple) else state
        return _sample(self, obs, key, state, Hooks.of(edits, taps))

    def objective(
        self,
        obs: Observation,
        key: Array,
        readout: Callable[[Sample], Float[Array, " b"]],
        *,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
    ) -> Float[Array, " b"]:
        """The bare policy's, under the edit at its first inference's strength."""
        edit = self.edit.replace(strength=self.edit.strength * self.schedule.at(0))  # type: ignore[attr-defined]
        return self.policy.objective(obs, key, readout, taps=taps, edits=(*edits, edit))


def load_steered(
    policy: Policy, folder: str | Path, direction: str, strength: float = 1.0, *, onset: int = 0
) -> SteeredPolicy:
    """A policy under one direction of a folder that `save_steering` wrote.

    Args:
        policy: what the directions were made with.
        folder: see `load_steering`.
        direction: its name.
        strength: of the direction.
        onset: inferences without it at the start of an episode.

    Raises:
        FileNotFoundError, FingerprintError: see `load_steering`.
        ValueError: no direction of that name, a strength that is not finite, or an onset below 0.
    """
    if not is_strength(strength) or onset < 0:
        raise ValueError(
            f"strength={strength}, onset={onset}: expected a finite strength, and 0 or more "
            "inferences without it."
        )
    found = load_steering(folder, policy.spec).directions
    if direction not in found:
        raise ValueError(f"{folder} has no direction {direction!r}; choose one of {list(found)}.")
    edit = found[direction].to_edit(strength)
    return SteeredPolicy(policy, edit, jnp.asarray(onset, jnp.int32))


@jax.jit
def _sample(
    steered: SteeredPolicy, obs: Observation, key: Array, state: Int[Array, " b"], hooks: Hooks
) -> Sample:
    share = steered.schedule.at(jnp.maximum(state - steered.onset, -1))
    edit = steered.edit.replace(strength=steered.edit.strength * share)  # type: ignore[attr-defined]
    plain = steered.policy.sample(obs, key, edits=(*hooks.edits, edit), taps=hooks.taps)
    aux = {**plain.aux, "edited": edit.strength != 0}
    return plain.replace(aux=aux, state=state + 1)  # type: ignore[attr-defined]
