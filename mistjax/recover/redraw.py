"""Another chunk for the same observation, where the failure score is high: four ways to draw one.

None of them knows which input is at fault, or that one is. All start from the prefix of the bare
chunk, run the action expert alone, and are fused with the bare chunk within the cap; see
`recover.redrawn`.

- `BestOf`: several chunks from other noise; the one whose failure score is lowest.
- `Guided`: the flow goes down the gradient of the failure score of what it is about to become.
- `Elite`: the flow starts half-way, from a chunk that led to success in a similar situation, and
  noise.
- `Steered`: the flow from the same noise, under an edit of the action expert.

Each has a control that does as much and knows nothing: `blind` scores, directions and situations
are random; the control of an edit is made of random directions, see `steer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from typing_extensions import Protocol, runtime_checkable

from mistjax.attribute.readouts import FailureScore
from mistjax.hooks.edits import Edit
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.sites import Tap
from mistjax.models.draws import element_keys, normal
from mistjax.models.observation import Observation
from mistjax.models.sampling import Field, Guide, denoise, draw_noise
from mistjax.policies.protocol import Policy, Sample
from mistjax.policies.wrapper import flow_of
from mistjax.recover.elites import Elites

_OTHERS, _BLIND = 0xBE57, 0xB11D
"""Names of the random streams of further chunks, and of what a control goes by."""


@flax.struct.dataclass
class Moment:
    """One inference of the policy, from which another chunk is to be drawn.

    Attributes:
        policy: the bare one, which also reports what the detector reads.
        obs, key, edits, prefix: of the inference.
        plain: its sample, with the taps of `score` and of the way.
        score: of a sample at this moment of the episode.
    """

    policy: Policy
    obs: Observation
    key: Array
    edits: Sequence[Edit]
    prefix: Any
    plain: Sample
    score: FailureScore


@runtime_checkable
class Redraw(Protocol):
    """A way to draw another chunk; a pytree, called inside the compiled program."""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Of the prefix, needed beside what the detector reads."""
        ...

    def check(self, policy: Policy, score: FailureScore) -> None:
        """ValueError where it cannot be done."""
        ...

    def draw(self, moment: Moment) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
        """(another chunk, where there is one)."""
        ...


@flax.struct.dataclass
class BestOf:
    """The bare chunk and samples - 1 others; of equally low ones the first.

    Cost: samples - 1 runs of the action expert.

    Attributes:
        samples: chunks in all, at least 2 (static).
        blind: the scores are random (static).
    """

    samples: int = flax.struct.field(pytree_node=False, default=8)
    blind: bool = flax.struct.field(pytree_node=False, default=False)

    taps = ()

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}: expected at least 2 chunks to choose of.")

    def check(self, policy: Policy, score: FailureScore) -> None:
        """Any policy that draws its actions, and any detector."""

    def draw(self, moment: Moment) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
        """See `Redraw.draw`."""
        obs, taps = moment.obs, moment.score.taps
        keys = _folded(element_keys(moment.key, obs.batch_size), _OTHERS)

        def judged(sample: Sample) -> tuple[Array, Array]:
            value = moment.score(sample)
            lost = sample.broken | ~jnp.isfinite(value)
            return sample.actions, jnp.where(lost, jnp.inf, value)

        def other(number: Array) -> tuple[Array, Array]:
            return judged(
                moment.policy.sample(
                    obs,
                    _folded(keys, number),
                    edits=moment.edits,
                    taps=taps,
                    prefix=moment.prefix,
                )
            )

        first = judged(moment.plain)
        others = jax.lax.map(other, jnp.arange(1, self.samples))
        chunks, scores = (
            jnp.concatenate([one[None], more]) for one, more in zip(first, others, strict=True)
        )
        if self.blind:
            luck = _blind(moment, (self.samples,)).T
            scores = jnp.where(jnp.isfinite(scores), luck, jnp.inf)
        best = jnp.argmin(scores, axis=0)
        chunk = jnp.take_along_axis(chunks, best[None, :, None, None], axis=0)[0]
        return chunk, best > 0


@flax.struct.dataclass
class Guided:
    """Every flow step moves against the gradient of the failure score, as classifier guidance does.

    The score is that of the clean chunk that the step predicts, and of the activations on its way.
    Its gradient with respect to the noisy actions is scaled to a length of its own, so that the
    guidance moves them by `strength` in all (root mean square, model units), whatever the score's
    size.

    Source: Dhariwal and Nichol (arXiv 2105.05233), section 4, for the flow of pi0 as in
    `models.inpainting`. Cost: a backward pass in every flow step.

    Attributes:
        strength: see above.
        blind: along one random direction instead, the same in every step (static).
    """

    strength: Float[Array, ""] | float = 0.3
    blind: bool = flax.struct.field(pytree_node=False, default=False)

    taps = ()

    def check(self, policy: Policy, score: FailureScore) -> None:
        """Flow policies, and detectors of activations that are averaged over flow steps."""
        flow_of(policy)
        if score.reads.parts != ("hidden",) or score.reads.pool != "mean":
            raise ValueError(
                "guidance needs the failure score of one flow step: the detector reads "
                f"{'+'.join(score.reads.parts)}, pooled by {score.reads.pool!r}, and must read "
                "hidden alone, pooled by 'mean'."
            )
        if not any(tap.stack == "action" for tap in score.taps):
            raise ValueError(
                "guidance needs a failure score that depends on the action: the detector reads "
                f"{', '.join(map(str, score.taps))}, and must read a tap of the action stack."
            )

    def draw(self, moment: Moment) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
        """See `Redraw.draw`."""
        flow, score = flow_of(moment.policy), moment.score
        own = tuple(tap for tap in score.taps if tap.stack == "action")
        noise = draw_noise(flow.config, moment.key, moment.obs.batch_size)
        luck = _blind(moment, noise.shape[1:])

        def guide(field: Field, noisy: Array, time: Array) -> tuple[Array, dict[str, Array]]:
            def failing(noisy: Array) -> tuple[Array, Any]:
                v, found = field(noisy)
                steps = {name: value[None] for name, value in found.items()}
                seen = {**moment.prefix.taps, **steps}
                return score(Sample(noisy - time * v, seen, {})).sum(), (v, found)

            gradient, (v, found) = jax.grad(failing, has_aux=True)(noisy)
            gradient = luck if self.blind else gradient
            size = jnp.sqrt(jnp.square(gradient).mean((1, 2), keepdims=True))
            uphill = jnp.where(size > 0, gradient / jnp.maximum(size, 1e-30), 0.0)
            return v + self.strength * uphill, found

        return _flowed(moment, noise, own, guide=guide), jnp.ones(len(noise), bool)


@flax.struct.dataclass
class Elite:
    """The flow starts at (1 - t0) elite + t0 noise from time t0: a prior of what worked.

    Where no remembered situation is as near as it is to its own nearest in clean episodes, there is
    no other chunk.

    Source: retrieve-then-steer (arXiv 2605.10094), which goes on to write while it acts, takes
    several chunks together and sets t0 by how well they agree; here the memory is made beforehand,
    the nearest chunk is taken, and t0 is fixed. Cost: t0 of the flow steps, and the distances to
    all that is remembered.

    Attributes:
        elites: situations and chunks of successful episodes.
        start: t0, above 0 (the elite as it is) and up to 1 (noise alone); rounded to a flow step
            (static).
        blind: the chunk of a random situation instead, where one is near (static).
    """

    elites: Elites
    start: float = flax.struct.field(pytree_node=False, default=0.5)
    blind: bool = flax.struct.field(pytree_node=False, default=False)

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ValueError(f"start is {self.start}: expected a time of the flow, in (0, 1].")

    @property
    def taps(self) -> tuple[Tap, ...]:
        return self.elites.taps

    def check(self, policy: Policy, score: FailureScore) -> None:
        """Flow policies."""
        flow_of(policy)

    def draw(self, moment: Moment) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
        """See `Redraw.draw`."""
        config = flow_of(moment.policy).config
        elite, near = self.elites.nearest(moment.plain.taps, moment.obs)
        if self.blind:
            luck = _blind(moment, (len(self.elites.chunks),))
            elite = self.elites.chunks[jnp.argmax(luck, axis=1)]
        first = min(round((1 - self.start) * config.num_steps), config.num_steps - 1)
        time = 1 - first / config.num_steps
        noise = draw_noise(config, moment.key, moment.obs.batch_size)
        return _flowed(moment, (1 - time) * elite + time * noise, (), first=first), near


@flax.struct.dataclass
class Steered:
    """The chunk of the same noise under an edit. Cost: one run of the action expert.

    Attributes:
        edit: of the action stack, such as the feedback of `steer.feedback`.
    """

    edit: Edit

    taps = ()

    def check(self, policy: Policy, score: FailureScore) -> None:
        """ValueError for an edit of the prefix, which is not computed again."""
        if self.edit.stack != "action":
            raise ValueError(
                f"the edit is of {self.edit.site!r}: the prefix is shared, so expected one of the "
                "action stack."
            )

    def draw(self, moment: Moment) -> tuple[Float[Array, "b h a"], Bool[Array, " b"]]:
        """See `Redraw.draw`."""
        edits = (*moment.edits, self.edit)
        sample = moment.policy.sample(moment.obs, moment.key, edits=edits, prefix=moment.prefix)
        return sample.actions, ~jnp.asarray(sample.broken)


def _blind(moment: Moment, shape: tuple[int, ...]) -> Array:
    """Random numbers of each batch element, [B,*shape]."""
    keys = _folded(element_keys(moment.key, moment.obs.batch_size), _BLIND)
    return jax.vmap(lambda k: normal(k, shape))(keys)


def _flowed(
    moment: Moment,
    noise: Float[Array, "b h a"],
    taps: tuple[Tap, ...],
    *,
    guide: Guide | None = None,
    first: int = 0,
) -> Float[Array, "b h a"]:
    """The chunk of a flow policy from the moment's prefix."""
    flow, obs = flow_of(moment.policy), moment.obs
    return denoise(
        flow.model,
        flow.variables,
        moment.prefix,
        jnp.asarray(obs.state),
        noise,
        Hooks.of(moment.edits, taps),
        num_steps=flow.config.num_steps,
        state_mask=None if obs.state_mask is None else jnp.asarray(obs.state_mask),
        pending=obs.pending,
        guide=guide,
        first=first,
    )[0]


def _folded(keys: Array, number: Any) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
