"""`ReckonedPolicy`: it acts on a reckoned state and not on the sensor, which is sound.

It is played to record how the robot strays when it does not know where it is, for `mistjax
fit-reckoning`: clean episodes of the policy itself hold little of that.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from mistjax.detect.novelty.artifact import load_inputs
from mistjax.policies.protocol import Policy, PolicySpec
from mistjax.policies.wrapper import Wrapper
from mistjax.recover.decision import always
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.repaired import Repaired
from mistjax.steer.remedies.artifact import RepairConfig, load_reckoning
from mistjax.steer.remedies.build import reckoned_spec
from mistjax.steer.remedies.reckoning import DeadReckoning


@dataclasses.dataclass(frozen=True)
class ReckonedPolicy(Wrapper):
    """See the module. The first inference acts on the sensor, as all do of an episode whose first
    look raises an alarm: there is nothing to reckon from. Its fingerprint is the same for every
    reckoning: what is recorded is what the sensors say, and a better reckoning is no reason to
    record it again.

    Attributes:
        policy: a `Repaired` whose state is always repaired.
    """

    policy: Repaired

    @property
    def spec(self) -> PolicySpec:
        known = reckoned_spec(self.policy.policy.spec)
        return dataclasses.replace(self.policy.spec, fingerprint=known.fingerprint)

    @classmethod
    def load(cls, bare: Policy, folder: str | Path) -> ReckonedPolicy:
        """By dead reckoning, or by sight where `mistjax fit-reckoning` has written to the folder.

        Args:
            bare: the policy.
            folder: of its monitor of inputs.

        Raises:
            FileNotFoundError, FingerprintError or ValueError: see `load_inputs`, `load_reckoning`.
        """
        inputs = load_inputs(folder, bare.spec.fingerprint)
        sighted = load_reckoning(folder, bare.spec.fingerprint, inputs)
        if sighted is not None:  # no entry is ever left to the sensor
            sighted = dataclasses.replace(sighted, usual=jnp.zeros_like(sighted.usual))
        remedies = {"state": sighted or DeadReckoning(inputs.motion)}
        config = RepairConfig()
        limits = FusionLimits.of(bare.spec, config.cap, bare.chunk_width)
        decision = always("state")
        return cls(Repaired(bare, inputs, remedies, limits, config, decision, "reckoned"))
