"""Where activations are read: stacks, points, token selectors and the `Tap`.

A site is `<stack>.<point>`. Stacks: `vision`, `vlm`, `action`, and `dino` where a policy has a
second vision tower. Points, with the shape that a tap returns (L selected layers, B batch
elements, T selected tokens, D width, N heads, h head size, F neurons):

- `resid`        [L,B,T,D]   residual stream after the block
- `attn_heads`   [L,B,T,N,h] each head's output, before the output projection
- `attn_out`     [L,B,T,D]   what attention adds
- `mlp_neurons`  [L,B,T,F]   FFN neuron activations: the input of the down projection
- `mlp_out`      [L,B,T,D]   what the FFN adds
- `projected`    [1,B,T,D]   of `vision` only: what leaves the tower, in the language model's width

Values of the `action` stack have the flow step or decoded token in front. `Tap.axes` names all
axes of a value; nothing else counts them.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

STACKS = ("vision", "dino", "vlm", "action")
POINTS = ("resid", "attn_heads", "attn_out", "mlp_neurons", "mlp_out")
PROJECTED = "vision.projected"
"""Behind the last layer of the vision tower: one layer, numbered 0."""

Reduce = Literal["mean", "max"] | None


def split_site(site: str) -> tuple[str, str]:
    """`"vlm.mlp_out"` -> `("vlm", "mlp_out")`; ValueError for anything that is not a site."""
    stack, _, point = site.partition(".")
    if site != PROJECTED and (stack not in STACKS or point not in POINTS):
        raise ValueError(
            f"{site!r} is not a site: expected <stack>.<point> with a stack of {STACKS} "
            f"and a point of {POINTS}, for example 'vlm.mlp_out', or {PROJECTED!r}."
        )
    return stack, point


@dataclasses.dataclass(frozen=True)
class Tap:
    """What to record. Hashable, so a tuple of taps is a static argument of a jitted function.

    Attributes:
        site: `<stack>.<point>`.
        layers: layer indices (negative ones count from the end); None means all.
        tokens: a token selector, see `TokenLayout.select`.
        reduce: over the selected valid tokens, inside the layer scan; None returns the tokens.
    """

    site: str
    layers: tuple[int, ...] | None = None
    tokens: str = "all"
    reduce: Reduce = None

    def __post_init__(self):
        split_site(self.site)
        if self.reduce not in ("mean", "max", None):
            raise ValueError(f"Tap.reduce is {self.reduce!r}: expected 'mean', 'max' or None.")
        if self.layers is not None:
            if not len(self.layers) or any(isinstance(layer, bool) for layer in self.layers):
                raise ValueError(f"Tap.layers is {self.layers}: expected layer numbers, or None.")
            object.__setattr__(self, "layers", tuple(map(operator.index, self.layers)))

    @property
    def stack(self) -> str:
        return split_site(self.site)[0]

    @property
    def point(self) -> str:
        return split_site(self.site)[1]

    def axes(self, ndim: int) -> tuple[str, ...]:
        """Names of the axes of this tap's value: "layer", "batch", "token" if it is not reduced,
        "head" at `attn_heads`, "width"; "step" comes first if there is one axis more.

        Raises:
            ValueError: no value of this tap has that many axes.
        """
        names = ("layer", "batch")
        names += ("token",) if self.reduce is None else ()
        names += ("head", "width") if self.point == "attn_heads" else ("width",)
        if ndim not in (len(names), len(names) + 1):
            raise ValueError(
                f"tap '{self}' came back with {ndim} axes: expected {', '.join(names)}, or one "
                "more in front for steps."
            )
        return names if ndim == len(names) else ("step", *names)

    def batch_first(
        self, value: Shaped[Array | np.ndarray, "..."]
    ) -> Shaped[Array | np.ndarray, "..."]:
        """The same value with the batch axis in front, as an episode is recorded: [B,(S),L,...]."""
        axis = self.axes(value.ndim).index("batch")
        order = (axis, *(i for i in range(value.ndim) if i != axis))
        return value.transpose(order)

    def __str__(self) -> str:
        layers = "all" if self.layers is None else ",".join(map(str, self.layers))
        return f"{self.site}@{layers}/{self.tokens}/{self.reduce or 'tokens'}"

    @classmethod
    def parse(cls, text: str) -> Tap:
        """The inverse of `str(tap)`; ValueError for any other text."""
        try:
            site, rest = text.split("@")
            layers, tokens, reduce = rest.split("/")
            chosen = None if layers == "all" else tuple(int(layer) for layer in layers.split(","))
            if reduce not in ("mean", "max", "tokens"):
                raise ValueError(reduce)
        except ValueError as error:
            raise ValueError(
                f"{text!r} is not a tap: expected <site>@<layers>/<tokens>/<reduce>, "
                "for example 'vlm.mlp_out@8/text/mean' or 'action.resid@all/action/tokens'."
            ) from error
        return cls(site, chosen, tokens, None if reduce == "tokens" else reduce)  # type: ignore[arg-type]


def resolve_layers(layers: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    """Layer indices in 0..depth-1; ValueError names the ones that do not exist."""
    chosen = tuple(range(depth)) if layers is None else layers
    wrong = [layer for layer in chosen if not -depth <= layer < depth]
    if wrong:
        raise ValueError(f"layers {wrong} do not exist: the stack has {depth} layers.")
    return tuple(layer % depth for layer in chosen)


def layers_at(site: str, depth: int) -> int:
    """Layers that a site has, in a stack of that depth."""
    return 1 if site == PROJECTED else depth


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """Names for runs of token positions of one stack.

    Attributes:
        length: tokens in the stack's sequence.
        segments: name -> (start, stop). Nested names are fine ("image" covers each camera).
    """

    length: int
    segments: Mapping[str, tuple[int, int]]

    def __hash__(self) -> int:
        return hash((self.length, tuple(sorted(self.segments.items()))))

    def select(self, selector: str) -> tuple[int, int]:
        """The (start, stop) of a selector: `all`, a segment, or `segment:a-b` (b excluded).

        `last` is the last *valid* token and is resolved against the mask, not here.

        Raises:
            ValueError: unknown segment, or a range outside of it.
        """
        if selector in ("all", "last"):
            return 0, self.length
        name, _, span = selector.partition(":")
        if name not in self.segments:
            raise ValueError(
                f"token selector {selector!r}: no segment {name!r}; "
                f"expected 'all', 'last' or one of {sorted(self.segments)} (or '<name>:a-b')."
            )
        start, stop = self.segments[name]
        if not span:
            return start, stop
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", span)
        a, b = (int(found[1]), int(found[2] or int(found[1]) + 1)) if found else (0, 0)
        if not a < b <= stop - start:
            raise ValueError(
                f"token selector {selector!r}: {name!r} has tokens 0 to {stop - start - 1}; "
                f"expected '{name}:a' or '{name}:a-b', b excluded."
            )
        return start + a, start + b

    def mask(self, selector: str, valid: Bool[Array, "b t"]) -> Bool[Array, "b t"]:
        """Which valid tokens a selector means, [B,T]."""
        if selector == "last":
            last = valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
            return (jnp.arange(valid.shape[1])[None] == last[:, None]) & valid
        start, stop = self.select(selector)
        positions = jnp.arange(valid.shape[1])
        return valid & ((positions >= start) & (positions < stop))[None]


def reduce_tokens(
    value: Float[Array, "b t *d"],
    mask: Bool[Array, "b t"],
    reduce: Reduce,
    whole: Bool[Array, "b s"] | None = None,
) -> Float[Array, "..."]:
    """Mean or max over the masked tokens ([B,*D]); an element without any gives 0.

    Where these tokens are some of those of a `whole` mask, the part of the mean or max that they
    are: see `join_parts`.
    """
    wide = mask.reshape(*mask.shape, *(1,) * (value.ndim - 2))
    if reduce == "mean":
        count = jnp.sum(mask if whole is None else whole, axis=1)
        count = count.reshape(-1, *(1,) * (value.ndim - 2))
        total = jnp.sum(jnp.where(wide, value, 0), axis=1)
        return total / jnp.maximum(count, 1).astype(value.dtype)
    peak = jnp.max(jnp.where(wide, value, -jnp.inf), axis=1)
    return peak if whole is not None else jnp.where(jnp.any(wide, axis=1), peak, 0)


def join_parts(parts: Sequence[Float[Array, "l b ..."]], tap: Tap) -> Float[Array, "l b ..."]:
    """A tap's value of all tokens, from its values of consecutive runs of them."""
    if tap.reduce == "max":
        peak = functools.reduce(jnp.maximum, parts)
        return jnp.where(jnp.isneginf(peak), 0, peak)
    if tap.reduce == "mean" or tap.tokens == "last":
        return functools.reduce(jnp.add, parts)
    return jnp.concatenate(parts, axis=2)
