"""Real-time chunking: a flow's new chunk agrees with the actions that are executed meanwhile.

While an inference runs, the robot executes what is left of the chunk before. Each flow step is
guided towards that rest: with weight 1 on the actions that will have been executed by the time the
new chunk is there, falling to 0 where the old chunk ends. Three variants of the guidance:

- `jacobian`: the error of the predicted clean chunk, pulled back through the denoiser, as
  published. Cost: a backward pass in every flow step.
- `identity`: the same with the identity in place of the denoiser's Jacobian.
- `closed`: the predicted clean chunk is replaced by its weighted mean with the old one, which is
  where full guidance leads; what has weight 1 comes out exactly.

With weight 0 everywhere the plain sampler's branch runs; without `Observation.pending` its program.

Source: Real-time execution of action chunking flow policies, Black et al. (arXiv 2506.07339),
equations 2 to 5, there with the time 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Variant = Literal["jacobian", "identity", "closed"]
BETA = 5.0
"""Largest guidance weight: the source's, for few flow steps."""


@flax.struct.dataclass
class Pending:
    """The rest of the chunk in flight, in model units, aligned with the chunk to be sampled.

    Attributes:
        actions: what is planned for each action of the new chunk; arbitrary where `weight` is 0.
        weight: how much the new chunk is to agree with it, 0 to 1.
        beta: largest guidance weight.
        variant: see the module (static).
    """

    actions: Float[Array, "b h a"]
    weight: Float[Array, "b h"]
    beta: Float[Array, " b"]
    variant: Variant = flax.struct.field(pytree_node=False, default="jacobian")


def soft_weights(
    delay: Int[Array, "..."] | int, executed: Int[Array, "..."] | int, horizon: int
) -> Float[Array, "*b {horizon}"]:
    """Weight of each action of the new chunk, equation 5.

    Args:
        delay: actions executed while the inference runs; may be traced.
        executed: actions between two inferences: where the old chunk ends, `horizon - executed`.
        horizon: actions of a chunk.
    """
    d, s = (jnp.asarray(x, jnp.float32)[..., None] for x in (delay, executed))
    i = jnp.arange(horizon, dtype=jnp.float32)
    c = jnp.clip((horizon - s - i) / jnp.maximum(horizon - s - d + 1, 1), 0, 1)
    soft = c * jnp.expm1(c) / jnp.expm1(jnp.float32(1))
    return jnp.where(i < d, 1.0, jnp.where(i < horizon - s, soft, 0.0))


def strength(time: Float[Array, ""], beta: Float[Array, " b"]) -> Float[Array, " b"]:
    """Guidance weight at a flow time t (1 is noise), equation 2: min((1-τ)/τ · 1/r², beta), with
    τ = 1 - t.
    """
    done = 1 - time
    return jnp.minimum(time / done * (done**2 + time**2) / time**2, beta)


def guided(
    velocity: Callable[[Float[Array, "b h a"]], tuple[Float[Array, "b h a"], Any]],
    noisy: Float[Array, "b h a"],
    time: Float[Array, ""],
    pending: Pending,
) -> tuple[Float[Array, "b h a"], Any]:
    """The velocity at noisy actions, guided towards what is pending; and what `velocity` returns
    beside it.

    Args:
        velocity: the plain one, from noisy actions.
        noisy: the actions at this flow step.
        time: of the flow, 1 for noise.
        pending: see `Pending`.
    """

    def clean(noisy):
        v, found = velocity(noisy)
        return noisy - time * v, (v, found)

    if pending.variant == "jacobian":
        predicted, pull, (v, found) = jax.vjp(clean, noisy, has_aux=True)
    else:
        predicted, (v, found) = clean(noisy)
    known = pending.weight[..., None]
    error = known * (jnp.where(known > 0, pending.actions, 0.0) - predicted)
    match pending.variant:
        case "jacobian":
            step = strength(time, pending.beta)[:, None, None] * pull(error)[0]
        case "identity":
            step = strength(time, pending.beta)[:, None, None] * error
        case _:
            step = error / time
    on: Bool[Array, "b 1 1"] = jnp.any(known > 0, axis=1, keepdims=True)
    return jnp.where(on, v - step, v), found
