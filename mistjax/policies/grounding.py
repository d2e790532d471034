"""A flow policy that also says what its chunk would have been without the evidence it rests on.

The keys and values that the action expert reads of the prefix are ablated, one modality (camera or
words) at a time: the most influential tokens are replaced by that modality's mean, and one flow
step is taken again from the same noise. A policy that reads its inputs reacts; one that runs on
habit, or reads an unsound input, reacts unusually little or much.

Source: GUARD (arXiv 2608.04510), read in its abstract and in summaries, not in full: influence of
the cache's tokens by gradients, the most influential tenth of each modality replaced by its mean,
counterfactual denoising from the same noise, and the diagnostics sensitivity, entropy, modality
bias and grounding efficiency. Ours: gradient x value of half the squared velocity as influence, all
layers of a token together, the first flow step, every camera a modality of its own, the entropy of
the influence in place of attention's, and logarithms. Cost: one gradient, and one flow step per
modality.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mistjax.hooks.edits import Edit
from mistjax.models.observation import Observation
from mistjax.models.sampling import Prefix
from mistjax.models.stacks import token_layouts
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import Reporting, flow_of

DIAGNOSTICS = ("sensitivity", "entropy", "efficiency")
"""Of each modality; after those of all, the modality bias."""
_TINY = 1e-6


def ablated(
    prefix: Prefix, influence: Float[Array, "b p"], segment: tuple[int, int], share: float
) -> tuple[Prefix, Bool[Array, "b p"]]:
    """(the prefix with the most influential tokens of a segment at that segment's mean, which).

    Args:
        prefix: of an observation.
        influence: of each token, not negative.
        segment: first token and end.
        share: of the segment's tokens, rounded up.
    """
    positions = jnp.arange(influence.shape[1])[None]
    inside = prefix.valid & (positions >= segment[0]) & (positions < segment[1])
    ranked = jnp.where(inside, influence, -1.0)
    least = jax.lax.top_k(ranked, math.ceil(share * (segment[1] - segment[0])))[0][:, -1:]
    chosen = inside & (ranked >= least)

    def replaced(leaf: Float[Array, "l b p k h"]) -> Float[Array, "l b p k h"]:
        weight = inside[None, :, :, None, None].astype(leaf.dtype)
        count = jnp.maximum(weight.sum(2, keepdims=True), 1)
        mean = (leaf * weight).sum(2, keepdims=True) / count
        return jnp.where(chosen[None, :, :, None, None], mean, leaf)

    return dataclasses.replace(prefix, cache=jax.tree.map(replaced, prefix.cache)), chosen


@dataclasses.dataclass(frozen=True)
class Grounded(Reporting):
    """Adds `aux["grounding"]` [B,3M+1]: `DIAGNOSTICS` of each of M modalities (the cameras in the
    model's order, then the words), and the modality bias, log sensitivity to pictures minus to
    words.

    Attributes:
        policy: a flow policy, whose samples hold the `velocity` of every step; ValueError for any
            other.
        share: fraction of a modality's tokens that is ablated.
    """

    policy: Policy
    share: float = 0.1

    adds: ClassVar[str] = "grounding"

    def __post_init__(self) -> None:
        flow_of(self.policy)  # says what is wrong
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}: expected a share of the tokens, up to 1.")

    def report(
        self,
        first: Sample,
        obs: Observation,
        key: Array,
        state: Any,
        edits: Sequence[Edit],
        prefix: Any,
    ) -> Array:
        """See `Reporting.report`."""
        flow = flow_of(self.policy)
        noise = first.actions + first.aux["velocity"].mean(1)
        return _diagnostics(flow, obs, noise, prefix, tuple(edits), self.share)


@functools.partial(jax.jit, static_argnames="share")
def _diagnostics(
    flow: Any,
    obs: Observation,
    noise: Float[Array, "b h a"],
    prefix: Prefix,
    edits: tuple[Edit, ...],
    share: float,
) -> Float[Array, "b d"]:
    """Of a flow policy at noisy actions of the first flow step."""
    layout = token_layouts(flow.config)["vlm"]
    segments = [layout.select(name) for name in (*flow.config.image_keys, "text")]

    def velocity(prefix: Prefix) -> Float[Array, "b h a"]:
        moved = flow.velocity(obs, noise, prefix, step=0, edits=edits)
        return moved[..., : flow.preset.action_dim]

    def half_square(cache) -> tuple[Float[Array, ""], Float[Array, "b h a"]]:
        v = velocity(dataclasses.replace(prefix, cache=cache))
        return 0.5 * jnp.sum(v**2), v

    slope, v = jax.grad(half_square, has_aux=True)(prefix.cache)
    both = [
        (g * x).astype(jnp.float32).sum((0, 3, 4)) for g, x in zip(slope, prefix.cache, strict=True)
    ]
    influence = jax.lax.stop_gradient(jnp.where(prefix.valid, jnp.abs(both[0] + both[1]), 0.0))
    total = jnp.maximum(influence.sum(1), _TINY)
    size = jnp.maximum(jnp.sqrt(jnp.sum(v**2, axis=(1, 2))), _TINY)
    found, reactions = [], []
    for start, stop in segments:
        other, chosen = ablated(prefix, influence, (start, stop), share)
        change = velocity(other) - v
        # the gradient of sqrt at 0 is infinite
        reaction = jnp.sqrt(jnp.sum(change**2, axis=(1, 2)) + _TINY**2) / size + _TINY
        removed = jnp.sum(jnp.where(chosen, influence, 0.0), axis=1) / total
        found += [jnp.log(reaction), _entropy(influence[:, start:stop])]
        found += [jnp.log(reaction / (removed + _TINY))]
        reactions.append(reaction)
    bias = jnp.log(sum(reactions[:-1]) / reactions[-1])
    return jnp.stack([*found, bias], axis=1)


def _entropy(influence: Float[Array, "b t"]) -> Float[Array, " b"]:
    """Of the shares of a modality's tokens, in nats."""
    shares = influence / jnp.maximum(influence.sum(1, keepdims=True), _TINY)
    return -jnp.sum(shares * jnp.log(shares + _TINY), axis=1)
