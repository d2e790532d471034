"""What is explained: a `Readout` turns a sample into one number for each observation.

Readouts are pytrees: a detector's weights and its state of the episode are leaves, so explaining
the next step compiles nothing.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.detect.inputs import Input
from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import Sample


@runtime_checkable
class Readout(Protocol):
    """A number to attribute, and the taps that it reads. `name` is used in sentences."""

    @property
    def name(self) -> str: ...

    @property
    def taps(self) -> tuple[Tap, ...]: ...

    def __call__(self, sample: Sample) -> Float[Array, " b"]: ...


@flax.struct.dataclass
class FailureScore:
    """A detector's `logit` at this step.

    Attributes:
        detector: any `Detector`.
        state: its state of the episode before this step.
        reads: what it reads.
    """

    detector: Any
    state: Any
    reads: Input = flax.struct.field(pytree_node=False)

    @property
    def name(self) -> str:
        return "failure score"

    @property
    def taps(self) -> tuple[Tap, ...]:
        return self.reads.taps

    def __call__(self, sample: Sample) -> Float[Array, " b"]:
        return self.detector.logit(self.state, self.reads.live(sample))


@flax.struct.dataclass
class ActionValue:
    """A weighted sum over the chunk: `weights` [H,A] in model units, for example 1/H on "dz"."""

    weights: Float[Array, "h a"]
    name: str = flax.struct.field(pytree_node=False, default="action")

    @property
    def taps(self) -> tuple[Tap, ...]:
        return ()

    def __call__(self, sample: Sample) -> Float[Array, " b"]:
        if sample.actions.shape[1:] != self.weights.shape:
            raise ValueError(
                f"weights have shape {self.weights.shape}, the chunks {sample.actions.shape}."
            )
        return jnp.einsum("bha,ha->b", sample.actions, self.weights)


@flax.struct.dataclass
class TokenLogProbability:
    """Summed over the tokens that were written; see `WritingPolicy` for given ones."""

    @property
    def name(self) -> str:
        return "log-probability of its tokens"

    @property
    def taps(self) -> tuple[Tap, ...]:
        return ()

    def __call__(self, sample: Sample) -> Float[Array, " b"]:
        if "token_log_prob" not in sample.aux:
            raise ValueError("this policy writes no tokens: ask about its action instead.")
        return sample.aux["token_log_prob"].sum(axis=1)


@flax.struct.dataclass
class ActionChange:
    """Mean squared distance of the chunk to another one, `reference` [B,H,A] in model units.

    With the sample of the untouched observation as reference, it measures how much an intervention
    changes what the robot does. Its gradient there is 0: use it with interventions.
    """

    reference: Float[Array, "b h a"]

    @property
    def name(self) -> str:
        return "action"

    @property
    def taps(self) -> tuple[Tap, ...]:
        return ()

    def __call__(self, sample: Sample) -> Float[Array, " b"]:
        if sample.actions.shape != self.reference.shape:
            shapes = self.reference.shape, sample.actions.shape
            raise ValueError("the reference has shape {}, the chunks {}.".format(*shapes))
        return jnp.mean(jnp.square(sample.actions - self.reference), axis=(1, 2))


@flax.struct.dataclass
class ActionKept(ActionChange):
    """Minus that distance: what keeps the chunk as it is counts as positive, as elsewhere."""

    def __call__(self, sample: Sample) -> Float[Array, " b"]:
        return -super().__call__(sample)


@flax.struct.dataclass
class ActionContrast:
    """How far the chunk is on the way from another one to its own: (a - a') . d / |d|, with a' the
    `reference` and d the `direction` from it, [B,H,A] in model units.

    With a' and d from another prompt on the same noise, it says what makes the policy do what this
    prompt asks rather than the other one; there it is |d|, and it has a gradient.
    """

    reference: Float[Array, "b h a"]
    direction: Float[Array, "b h a"]

    @property
    def name(self) -> str:
        return "difference of the actions"

    @property
    def taps(self) -> tuple[Tap, ...]:
        return ()

    def __call__(self, sample: Sample) -> Float[Array, " b"]:
        length = jnp.sqrt(jnp.square(self.direction).sum((1, 2)))
        along = ((sample.actions - self.reference) * self.direction).sum((1, 2))
        return along / jnp.maximum(length, 1e-12)
