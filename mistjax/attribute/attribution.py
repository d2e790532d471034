"""`Attribution`: how much each patch, word and state dimension adds to a readout."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.attribute.inputs import Inputs, PatchSize, Regions
from mistjax.attribute.readouts import Readout
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy


@flax.struct.dataclass
class Attribution:
    """Positive numbers raised the readout, compared with the baseline.

    Attributes:
        images: camera -> one number per patch.
        text: one number per prompt token.
        state: one number per state dimension.
        value: the readout.
        baseline_value: the readout of the baseline.
        completeness_error: |sum of all numbers - (value - baseline_value)| / |value -
            baseline_value|. Integrated gradients promise 0; for other methods it says how far
            their numbers are from being shares of the change. NaN where the numbers are unsigned.
        patch: pixels (height, width) of a patch.
    """

    images: dict[str, Float[Array, "b gy gx"]]
    text: Float[Array, "b l"]
    state: Float[Array, "b s"]
    value: Float[Array, " b"]
    baseline_value: Float[Array, " b"]
    completeness_error: Float[Array, " b"]
    patch: PatchSize = flax.struct.field(pytree_node=False)

    @classmethod
    def signed(
        cls, parts: Regions, value: Array, baseline_value: Array, patch: PatchSize
    ) -> Attribution:
        """Numbers that may sum to the change of the readout."""
        leaves = [*parts.images.values(), parts.text, parts.state]
        total = sum(leaf.reshape(len(value), -1).sum(axis=1) for leaf in leaves)
        change = value - baseline_value
        error = jnp.abs(total - change) / jnp.maximum(jnp.abs(change), 1e-12)
        return cls(parts.images, parts.text, parts.state, value, baseline_value, error, patch)

    @classmethod
    def unsigned(
        cls, parts: Regions, value: Array, baseline_value: Array, patch: PatchSize
    ) -> Attribution:
        """Numbers that say how much something matters, not in which direction."""
        error = jnp.full_like(value, jnp.nan)
        return cls(parts.images, parts.text, parts.state, value, baseline_value, error, patch)


def evaluate(
    policy: Policy, obs: Observation, key: Array, readout: Readout, inputs: Inputs
) -> Float[Array, " b"]:
    """The readout of an observation with other inputs, under the same noise."""
    return policy.objective(inputs.into(obs), key, readout, taps=readout.taps)
