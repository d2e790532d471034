"""A gate that opens where an observation changes what the robot is about to do.

A chunk says more actions than are executed before the next one comes. Where the next chunk says of
the same moments what the one before did, nothing that was seen in between has changed the action:
then there is nothing to explain, and nothing worth remembering. It costs no inference.

Source: AURA (arXiv 2606.02775), which writes to its memory only where the observation would change
the next action; there a network learns when, here the two chunks are compared.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mistjax.policies.protocol import PolicySpec
from mistjax.recover.fusion import FusionLimits


@flax.struct.dataclass
class ActionGate:
    """See the module.

    Attributes:
        tolerance: largest change of each action dimension that counts as none, in model units.
        execute: actions of a chunk that are executed before the next one (static).
    """

    tolerance: Float[Array, " a"]
    execute: int = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, spec: PolicySpec, share: float, width: int) -> ActionGate:
        """With the same share of every dimension's range.

        Args:
            spec: the policy.
            share: of the range between the bounds, in [0, 1].
            width: action dimensions of the model, padding included.

        Raises:
            ValueError: `share` is outside [0, 1], or the policy executes its chunks to their end,
                so that no two of them are about the same moments.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}: expected a share of the action range in [0, 1].")
        if spec.execute_steps >= spec.action_horizon:
            raise ValueError(
                f"{spec.name!r} executes all {spec.action_horizon} actions of a chunk: no chunk "
                "says what the next one should, so nothing can be compared."
            )
        span = FusionLimits.of(spec, 1.0, width).cap
        return cls(jnp.where(span > 0, share * span, jnp.inf), spec.execute_steps)

    def start(self, horizon: int, batch: int) -> tuple[Array, Array]:
        """(nothing planned, open), before the first chunk."""
        plan = jnp.full((batch, horizon, len(self.tolerance)), jnp.nan)
        return plan, jnp.ones(batch, bool)

    def next(
        self, chunk: Float[Array, "b h a"], plan: Float[Array, "b h a"]
    ) -> tuple[Array, Bool[Array, " b"]]:
        """(the plan from now on, whether the chunk changes an action of the plan so far)."""
        rest = plan[:, self.execute :]
        return chunk, ~self.same(chunk[:, : rest.shape[1]], rest)

    def same(self, a: Float[Array, "b h a"], b: Float[Array, "b h a"]) -> Bool[Array, " b"]:
        """Whether all of two chunks is within the tolerance; nothing is the same as NaN."""
        return jnp.all(jnp.abs(a - b) <= self.tolerance[None, None], axis=(1, 2))
