"""`Breakable`: a policy into which faults are injected: stalls, exceptions, chunks of NaN."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np

from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import Wrapper


class Breakable(Wrapper):
    """The inner policy, bit for bit, until a fault is set.

    Attributes:
        stall_s: how long each inference hangs before it starts; setting `release` ends the stall.
        error: raised instead of returning a sample.
        nan: whether the chunk of the first batch element is NaN.
        release: ends a stall under way.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.stall_s, self.nan = 0.0, False
        self.error: Exception | None = None
        self.release = threading.Event()

    def mend(self) -> None:
        """Removes every fault, and ends a stall under way."""
        self.stall_s, self.error, self.nan = 0.0, None, False
        self.release.set()
        self.release = threading.Event()

    def sample(self, *args: Any, **options: Any) -> Sample:
        """See `Policy.sample`."""
        if self.stall_s:
            self.release.wait(self.stall_s)
        if self.error is not None:
            raise self.error
        sample = self.policy.sample(*args, **options)
        if self.nan:
            actions = np.array(sample.actions)
            actions[0] = np.nan
            sample = dataclasses.replace(sample, actions=jnp.asarray(actions))
        return sample
