"""What is attributed: pixels, word embeddings and state of an observation, and what stands in for
their absence (the baseline).

`Inputs` is everything that a readout can be differentiated in; `Regions` says how much of each
patch, word and state dimension to replace by the baseline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy
from mistjax.policies.wrapper import language

PatchSize = tuple[int, int]


@flax.struct.dataclass
class Inputs:
    """The differentiable part of an observation.

    Attributes:
        images: camera name -> pixels in [-1, 1].
        text: embedded prompt.
        state: normalised state, padded to the model's width.
    """

    images: dict[str, Float[Array, "b h w 3"]]
    text: Float[Array, "b l d"]
    state: Float[Array, "b s"]

    @classmethod
    def of(cls, policy: Policy, obs: Observation) -> Inputs:
        """Reads an observation.

        Args:
            policy: one with words, see `LanguagePolicy`.
            obs: the observation; its own `prompt_embedding` is used where it has one.

        Raises:
            ValueError: the prompt is not embedded and the policy has no words.
        """
        words = obs.prompt_embedding
        return cls(
            images={name: jnp.asarray(image) for name, image in obs.images.items()},
            text=_embed(policy, obs) if words is None else jnp.asarray(words),
            state=jnp.asarray(obs.state),
        )

    def into(self, obs: Observation) -> Observation:
        """The observation with these inputs in place of its own."""
        return dataclasses.replace(
            obs, images=self.images, prompt_embedding=self.text, state=self.state
        )


def _embed(policy: Policy, obs: Observation) -> Float[Array, "b l d"]:
    words = language(policy).embed_prompt(obs).prompt_embedding
    assert words is not None
    return jnp.asarray(words)


def grey(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """The middle of the range."""
    return jnp.zeros_like(images)


def mean_colour(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Each picture's own mean colour."""
    return jnp.broadcast_to(images.mean(axis=(1, 2), keepdims=True), images.shape)


def blurred(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Gaussian blur, standard deviation 1/8 of the height: colours stay, small objects go."""
    height, width = images.shape[1:3]
    rows, columns = _blur_matrix(height, height / 8), _blur_matrix(width, height / 8)
    return jnp.einsum("ij,bjkc,lk->bilc", rows, images, columns).astype(images.dtype)


def _blur_matrix(size: int, sigma: float) -> Float[Array, "n n"]:
    distance = jnp.arange(size, dtype=jnp.float32)
    distance = distance[:, None] - distance[None]
    weight = jnp.exp(-0.5 * (distance / sigma) ** 2)
    return weight / weight.sum(axis=1, keepdims=True)


IMAGE_BASELINES = {"grey": grey, "mean": mean_colour, "blurred": blurred}
TEXT_BASELINES = ("padding", "zero")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What an input is compared with. The state's baseline is 0: the mean state under z-score
    normalisation, the middle of the range under quantile normalisation.

    Attributes:
        image: `blurred`, `mean` (each picture's mean colour) or `grey`.
        text: `padding` (the padding token's embedding) or `zero`.
    """

    image: str = "blurred"
    text: str = "padding"

    def __post_init__(self):
        if self.image not in IMAGE_BASELINES or self.text not in TEXT_BASELINES:
            raise ValueError(
                f"{self} is not a baseline: image is one of {tuple(IMAGE_BASELINES)}, text one of "
                f"{TEXT_BASELINES}."
            )

    def inputs(self, policy: Policy, obs: Observation, inputs: Inputs) -> Inputs:
        """The baseline of these inputs; ValueError as for `Inputs.of`."""
        if self.text == "zero":
            text = jnp.zeros_like(inputs.text)
        else:
            padding = jnp.zeros_like(obs.tokenized_prompt)
            text = _embed(policy, dataclasses.replace(obs, tokenized_prompt=padding))
        return Inputs(
            images={name: IMAGE_BASELINES[self.image](x) for name, x in inputs.images.items()},
            text=text,
            state=jnp.zeros_like(inputs.state),
        )


@flax.struct.dataclass
class Regions:
    """One number for each patch, word and state dimension; r is the batch, or 1 for all of it.

    As the argument of `replaced`: how much of it to replace, in [0, 1].
    """

    images: dict[str, Float[Array, "r gy gx"]]
    text: Float[Array, "r l"]
    state: Float[Array, "r s"]

    @classmethod
    def full(cls, inputs: Inputs, patch: PatchSize, value: float = 1.0, rows: int = 1) -> Regions:
        """The same number everywhere."""
        shapes = {
            n: (x.shape[1] // patch[0], x.shape[2] // patch[1]) for n, x in inputs.images.items()
        }
        return cls(
            images={n: jnp.full((rows, *grid), value, jnp.float32) for n, grid in shapes.items()},
            text=jnp.full((rows, inputs.text.shape[1]), value, jnp.float32),
            state=jnp.full((rows, inputs.state.shape[1]), value, jnp.float32),
        )


def replaced(inputs: Inputs, baseline: Inputs, regions: Regions, patch: PatchSize) -> Inputs:
    """`inputs` with `regions` replaced by the baseline; exactly `inputs` where a region is 0."""

    def blend(x: Array, b: Array, weight: Array) -> Array:
        return jnp.where(weight == 0, x, x + (weight * (b - x)).astype(x.dtype))

    def pixels(weight: Array, like: Array) -> Array:
        wide = jnp.repeat(jnp.repeat(weight, patch[0], axis=1), patch[1], axis=2)
        missing = [(0, like.shape[i] - wide.shape[i]) for i in (1, 2)]
        return jnp.pad(wide, [(0, 0), *missing])[..., None]

    return Inputs(
        images={
            name: blend(x, baseline.images[name], pixels(regions.images[name], x))
            for name, x in inputs.images.items()
        },
        text=blend(inputs.text, baseline.text, regions.text[..., None]),
        state=blend(inputs.state, baseline.state, regions.state),
    )


def each_region(
    policy: Policy, obs: Observation, patch: PatchSize
) -> tuple[Callable[[Array], Regions], int]:
    """(vector -> `Regions` of one observation, the length of the vector)."""
    shapes = jax.eval_shape(lambda: Inputs.of(policy, obs))
    flat, unravel = ravel_pytree(Regions.full(shapes, patch))
    return unravel, flat.size


def per_element(unravel: Callable[[Array], Regions], vectors: Float[Array, "b n"]) -> Regions:
    """One vector per batch element -> `Regions` with the batch as leading axis."""
    return jax.tree.map(lambda leaf: leaf[:, 0], jax.vmap(unravel)(vectors))


def patch_sums(pixels: Float[Array, "b h w 3"], patch: PatchSize) -> Float[Array, "b gy gx"]:
    """Sums over the pixels and colours of each patch, without a remainder that no patch covers."""
    rows, columns = pixels.shape[1] // patch[0], pixels.shape[2] // patch[1]
    cut = pixels[:, : rows * patch[0], : columns * patch[1]]
    return cut.reshape(len(pixels), rows, patch[0], columns, patch[1], 3).sum(axis=(2, 4, 5))
