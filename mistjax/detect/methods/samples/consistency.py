"""Do consecutive action chunks agree where they overlap? STAC, on distributions or on single
chunks.

Features of a step are sampled chunks as in `action_samples`. The first step of an episode scores 0.
Source: Agia et al., "Unpacking Failure Modes of Generative Policies" (arXiv 2410.04640); SAFE
(arXiv 2506.09937).
"""

from __future__ import annotations

import flax.struct as struct
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from mistjax.detect.inputs import ChunkLayout
from mistjax.detect.methods.accumulate import Accumulate, accumulate_step, init_running


def squared_mmd(
    x: Float[Array, "*b m d"], y: Float[Array, "*b n d"], bandwidth: float
) -> Float[Array, "*b"]:
    """Biased squared maximum mean discrepancy with kernel exp(-|x - y|^2 / bandwidth)."""

    def kernel_mean(a: Array, b: Array) -> Array:
        squared = jnp.sum((a[..., :, None, :] - b[..., None, :, :]) ** 2, axis=-1)
        return jnp.exp(-squared / bandwidth).mean((-2, -1))

    return kernel_mean(x, x) + kernel_mean(y, y) - 2 * kernel_mean(x, y)


@struct.dataclass
class TemporalConsistency:
    """Discrepancy between the tail of the previous chunk and the head of this one.

    With one sample it is the mean distance over overlapping steps (STAC-single); with several, the
    squared MMD of the flattened overlaps (STAC).

    Attributes:
        layout: of the features.
        executed: steps of each chunk that were executed before the next one.
        bandwidth: of the MMD kernel.
        accumulate: how steps become the score.
    """

    layout: ChunkLayout = struct.field(pytree_node=False)
    executed: int = struct.field(pytree_node=False)
    bandwidth: float = struct.field(pytree_node=False, default=1.0)
    accumulate: Accumulate = struct.field(pytree_node=False, default="none")

    def __post_init__(self) -> None:
        if not 0 < self.executed < self.layout.horizon:
            raise ValueError(
                f"chunks of {self.layout.horizon} steps with {self.executed} executed do not "
                "overlap; this score needs 0 < executed < horizon."
            )

    def init_state(self, batch: int) -> PyTree:
        layout = self.layout
        shape = batch, layout.samples, layout.horizon, layout.dim
        return {
            "previous": jnp.zeros(shape, jnp.float32),
            "running": init_running(batch),
        }

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        tail = state["previous"][:, :, self.executed :]
        head = self.layout.unflatten(features)[:, :, : -self.executed]
        if self.layout.samples == 1:
            squared = jnp.sum((head - tail) ** 2, axis=-1)
            # the gradient of sqrt at 0 is infinite
            value = jnp.sqrt(jnp.maximum(squared, 1e-30)).mean((1, 2))
        else:
            flat = [x.reshape(*x.shape[:2], -1) for x in (tail, head)]
            value = squared_mmd(flat[0], flat[1], self.bandwidth)
        return jnp.where(state["running"]["steps"] > 0, value, 0.0)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        running, score = accumulate_step(
            self.accumulate, state["running"], self.logit(state, features)
        )
        return {"previous": self.layout.unflatten(features), "running": running}, score
