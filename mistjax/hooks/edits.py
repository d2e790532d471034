"""What to change: edits as pytrees of arrays.

An edit says where (site, tokens), how much (`strength`, times a gate per layer and a weight per
flow step or decoded token) and what (its own arrays, layer axis first). Site and token selector
are static; everything else is data, so turning an edit on, off, up or down never recompiles.
Wherever the coefficient is exactly 0 the activation passes through bit for bit.

Sources of the interventions: Häon et al., arXiv 2509.00328 (overwriting FFN neurons of a VLA);
Turner et al., arXiv 2308.10248 (adding a vector); Arditi et al., arXiv 2406.11717 (projecting a
direction out); Meng et al., arXiv 2202.05262 (patching); Singh et al., arXiv 2402.09631 (affine
maps).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.hooks.sites import split_site


def _static(default):
    return flax.struct.field(pytree_node=False, default=default)


@flax.struct.dataclass
class Edit:
    """Base of all edits. Use a subclass.

    Attributes:
        site: `<stack>.<point>` (static).
        tokens: token selector (static), as for `Tap`.
        strength: scalar, or one per batch element [B].
        gate: one weight per layer of the stack [L]; None means every layer.
        step_weights: one weight per flow step or decoded token [S]; None means every step. Only
            read where there are steps: prefill always has weight 1.
    """

    site: str = _static("vlm.mlp_out")
    tokens: str = _static("all")
    strength: Float[Array, "..."] | float = 1.0
    gate: Float[Array, " l"] | None = None
    step_weights: Float[Array, " s"] | None = None

    shared: ClassVar[bool] = False
    """Whether one number may stand for a whole width."""

    def __post_init__(self):
        split_site(self.site)

    @property
    def stack(self) -> str:
        return split_site(self.site)[0]

    @property
    def point(self) -> str:
        return split_site(self.site)[1]

    def layer_data(self, depth: int) -> dict[str, Array]:
        """The edit's own arrays, each with the layer axis first."""
        raise NotImplementedError

    def check(self, data: Mapping[str, Array], shape: tuple[int, ...]) -> None:
        """ValueError where an array (without the layer axis) does not fit the values [B,T,*D] of
        the site: JAX would broadcast it.
        """
        for name, array in data.items():
            if not self.fits(name, array.shape, shape):
                raise ValueError(
                    f"{type(self).__name__}.{name} has shape {array.shape} in each layer: "
                    f"{self.site!r} has {shape[1]} tokens of {shape[2:]} in a batch of {shape[0]}."
                )

    def fits(self, name: str, own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether an array is one value *D for all tokens, or [B,T,*D] with any of B and T 1."""
        rows, value = (own[:2], own[2:]) if len(own) == len(shape) else ((), own)
        return (
            len(value) == len(shape) - 2
            and all(
                n in (1, m) for n, m in zip((*rows, *value), shape[2 - len(rows) :], strict=True)
            )
            and (self.shared or value[-1] == shape[-1])
        )

    @staticmethod
    def transform(x: Array, coefficient: Array, data: dict[str, Array]) -> Array:
        """One layer: x [B,T,*D], coefficient broadcastable to x, data without the layer axis and
        with at least as many axes as x.
        """
        raise NotImplementedError


def _check(name: str, array, depth: int):
    if array.shape[0] != depth:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}: its first axis must be the stack's {depth} "
            "layers; tile a vector with jnp.broadcast_to(v, (depth, *v.shape)) and gate the layers."
        )
    return array


@flax.struct.dataclass
class Add(Edit):
    """x + c * vector, vector [L,*D]: activation addition."""

    vector: Float[Array, "l *d"] = None  # type: ignore[assignment]

    def layer_data(self, depth) -> dict[str, Array]:
        return {"vector": _check("Add.vector", self.vector, depth)}

    @staticmethod
    def transform(x, coefficient, data) -> Array:
        return x + (coefficient * data["vector"]).astype(x.dtype)


@flax.struct.dataclass
class SetNeurons(Edit):
    """Moves the chosen neurons to a value: x + c * mask * (value - x); mask and value [L,F] (or
    [L,*D]).

    With strength 1 this is the overwrite of Häon et al.
    """

    mask: Float[Array, "l *f"] = None  # type: ignore[assignment]
    value: Float[Array, "l *f"] = None  # type: ignore[assignment]

    def layer_data(self, depth) -> dict[str, Array]:
        return {
            "mask": _check("SetNeurons.mask", self.mask, depth),
            "value": _check("SetNeurons.value", self.value, depth),
        }

    @staticmethod
    def transform(x, coefficient, data) -> Array:
        weight = (coefficient * data["mask"]).astype(x.dtype)
        return jnp.where(weight != 0, x + weight * (data["value"].astype(x.dtype) - x), x)


@flax.struct.dataclass
class Scale(Edit):
    """x * (1 + c * (factor - 1)); factor [L,*D], or with axes of size 1 ([L,N,1] for heads)."""

    factor: Float[Array, "l *d"] = None  # type: ignore[assignment]

    shared: ClassVar[bool] = True

    def layer_data(self, depth) -> dict[str, Array]:
        return {"factor": _check("Scale.factor", self.factor, depth)}

    @staticmethod
    def transform(x, coefficient, data) -> Array:
        return x * (1 + coefficient * (data["factor"] - 1)).astype(x.dtype)


@flax.struct.dataclass
class ProjectOut(Edit):
    """x - c * (x . d) d with d [L,D] normalised here: removes a direction (last axis)."""

    direction: Float[Array, "l *d"] = None  # type: ignore[assignment]

    def layer_data(self, depth) -> dict[str, Array]:
        direction = _check("ProjectOut.direction", self.direction, depth)
        norm = jnp.linalg.norm(direction, axis=-1, keepdims=True)
        return {"direction": direction / jnp.maximum(norm, 1e-12)}

    @staticmethod
    def transform(x, coefficient, data) -> Array:
        direction = data["direction"].astype(x.dtype)
        along = jnp.sum(x * direction, axis=-1, keepdims=True)
        return x - coefficient.astype(x.dtype) * along * direction


@flax.struct.dataclass
class Affine(Edit):
    """x + c * (x @ weight + bias): a shared weight [L,D,D] and bias [L,D], or one of each per batch
    element ([L,B,1,D,D], [L,B,1,D]).
    """

    weight: Float[Array, "l *r d d"] = None  # type: ignore[assignment]
    bias: Float[Array, "l *r d"] = None  # type: ignore[assignment]

    def fits(self, name, own, shape) -> bool:
        """See `Edit.fits`; heads share one map, one per batch element fits points without heads."""
        one = shape[-1:] if name == "bias" else 2 * shape[-1:]
        per_element = [(b, 1, *one) for b in (1, shape[0]) if len(shape) == 3]
        return own in (one, *per_element)

    def layer_data(self, depth) -> dict[str, Array]:
        return {
            "weight": _check("Affine.weight", self.weight, depth),
            "bias": _check("Affine.bias", self.bias, depth),
        }

    @staticmethod
    def transform(x, coefficient, data) -> Array:
        weight = data["weight"].astype(x.dtype)  # [1,D,D], of heads [1,1,D,D], or [B,1,D,D]
        weight = weight[:, 0] if weight.ndim > x.ndim else weight.reshape(weight.shape[-2:])
        change = x @ weight + data["bias"].astype(x.dtype)
        return x + coefficient.astype(x.dtype) * change


@flax.struct.dataclass
class Patch(Edit):
    """x + c * (value - x), value [L,B,T,*D] from another run: activation patching."""

    value: Float[Array, "l b t *d"] = None  # type: ignore[assignment]

    shared: ClassVar[bool] = True

    def fits(self, name, own, shape) -> bool:
        """See `Edit.fits`; a value per token, for each batch element or shared by all."""
        if name == "value":
            return own[1:] == shape[1:] and own[0] in (1, shape[0])
        return super().fits(name, own, shape)

    def layer_data(self, depth) -> dict[str, Array]:
        return {"value": _check("Patch.value", self.value, depth)}

    @staticmethod
    def transform(x, coefficient, data) -> Array:
        return x + coefficient.astype(x.dtype) * (data["value"].astype(x.dtype) - x)


@flax.struct.dataclass
class Sparse(Edit):
    """x + c * (decode(encode(x)) - x): a TopK autoencoder stands in for every token.

    encoder [L,D,F], bias [L,F], decoder [L,F,D], mean [L,D], and k features per token (static).
    """

    encoder: Float[Array, "l d f"] = None  # type: ignore[assignment]
    bias: Float[Array, "l f"] = None  # type: ignore[assignment]
    decoder: Float[Array, "l f d"] = None  # type: ignore[assignment]
    mean: Float[Array, "l d"] = None  # type: ignore[assignment]
    k: int = _static(1)

    def layer_data(self, depth) -> dict[str, Array]:
        names = ("encoder", "bias", "decoder", "mean")
        return {name: _check(f"Sparse.{name}", getattr(self, name), depth) for name in names}

    def fits(self, name, own, shape) -> bool:
        """See `Edit.fits`; only at points without heads."""
        width, features = shape[-1], self.bias.shape[-1]
        expected = {
            "encoder": (width, features),
            "bias": (features,),
            "decoder": (features, width),
            "mean": (width,),
        }
        return len(shape) == 3 and own == expected[name]

    @staticmethod
    def encode(
        x: Float[Array, "*n d"],
        encoder: Float[Array, "d f"],
        bias: Float[Array, " f"],
        mean: Float[Array, " d"],
        k: int,
    ) -> Float[Array, "*n f"]:
        """Activations of the features, all but the k largest 0."""
        ones = (1,) * (x.ndim - 1)
        code = jax.nn.relu((x - mean.reshape(*ones, -1)) @ encoder + bias.reshape(*ones, -1))
        least = jax.lax.top_k(code, k)[0][..., -1:]
        return jnp.where(code >= least, code, 0)

    def transform(self, x, coefficient, data) -> Array:  # type: ignore[override]
        flat = {name: value.reshape(getattr(self, name).shape[1:]) for name, value in data.items()}
        flat = {name: value.astype(x.dtype) for name, value in flat.items()}
        decoder = flat.pop("decoder")
        code = self.encode(x, k=self.k, **flat)
        stand_in = code @ decoder + flat["mean"][None, None]
        return x + coefficient.astype(x.dtype) * (stand_in - x)
