"""How far a flow policy's velocities disagree: the integral curve of a decided policy is straight.

Features of a step are the velocities of every flow step, see `Input`. Source of the idea that a
flow which has learned one answer is straight: Rectified flow (arXiv 2209.03003). That its bends are
a score of the policy's doubt, and their measure, are ours.
"""

from __future__ import annotations

import flax.struct as struct
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mistjax.detect.inputs import ChunkLayout


@struct.dataclass
class VelocityDisagreement:
    """Mean distance of the velocities of a sample from their mean, over their mean length; 0 where
    the flow is straight.

    Attributes:
        layout: of the features, with flow steps as samples.
    """

    layout: ChunkLayout = struct.field(pytree_node=False)

    def init_state(self, batch: int) -> PyTree:
        return jnp.zeros(batch, jnp.float32)

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        del state
        velocity = self.layout.unflatten(features)
        velocity = velocity.reshape(*velocity.shape[:2], -1)
        away = velocity - velocity.mean(1, keepdims=True)
        # the gradient of sqrt at 0 is infinite
        distance, length = (
            jnp.sqrt(jnp.sum(x**2, axis=-1) + 1e-12).mean(1) for x in (away, velocity)
        )
        return distance / length

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return state, self.logit(state, features)
