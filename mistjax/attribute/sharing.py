"""`Runs`: many inferences of one observation under the same noise, which have some of it in common.

What an intervention leaves alone is computed once: the vision tower where it leaves the pictures
alone, the prefix where it changes the state or the action expert only. So do pi0, pi0.5 and
pi0-FAST; other policies compute everything in each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
from jaxtyping import Array, Float

from mistjax.attribute.readouts import Readout
from mistjax.hooks.edits import Edit
from mistjax.models.observation import Observation
from mistjax.policies.pi import PiPolicy
from mistjax.policies.protocol import Policy

NOTHING, PICTURES, PREFIX = "nothing", "pictures", "prefix"


@flax.struct.dataclass
class Runs:
    """A function of an observation and edits; see the module.

    Attributes:
        policy: whose samples are read.
        obs: what the runs begin with: as it was given, with `image_embedding` where that is shared.
        key: of the sampling noise.
        readout: what is measured.
        prefix: where that is shared, else None.
    """

    policy: Policy
    obs: Observation
    key: Array
    readout: Readout
    prefix: Any = None

    @classmethod
    def sharing(
        cls, what: str, policy: Policy, obs: Observation, key: Array, readout: Readout
    ) -> Runs:
        """Runs that leave alone `NOTHING`, the `PICTURES`, or with them the words: the `PREFIX`."""
        prefix = None
        if isinstance(policy, PiPolicy) and what == PICTURES and obs.image_embedding is None:
            obs = policy.embed_images(obs)[0]
        elif isinstance(policy, PiPolicy) and what == PREFIX:
            prefix = policy.prefill(obs, taps=readout.taps)
        return cls(policy, obs, key, readout, prefix)

    def __call__(self, obs: Observation, edits: Sequence[Edit] = ()) -> Float[Array, " b"]:
        """The readout; `obs` differs from `self.obs` in what is not shared alone."""
        policy, taps = self.policy, self.readout.taps
        if self.prefix is None:
            return policy.objective(obs, self.key, self.readout, taps=taps, edits=edits)
        return self.readout(
            policy.sample(obs, self.key, taps=taps, edits=edits, prefix=self.prefix)
        )
