"""Affine maps that carry the activations of one condition over to another.

A change of appearance (another table, other light) moves each token differently: one added vector
undoes a few percent of it, a least-squares map of paired activations much more. The map is fitted
to observations of the same situations in both conditions, layer by layer, each under the maps of
the layers before. With `anchored` it is also fitted to leave the wanted condition as it is, so that
it does little where it is not needed.

Source: affine steering functions, Singh et al., arXiv 2402.09631 (there from unpaired means and
covariances). Cost: three inferences of every observation for each layer, and a [D,D] matrix each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mistjax.hooks.edits import Affine, Edit
from mistjax.hooks.sites import Tap, resolve_layers
from mistjax.policies.protocol import Policy, RawObs
from mistjax.steer.vectors import Provenance


@flax.struct.dataclass
class AffineMap:
    """The change x @ weight + bias of each layer.

    Attributes:
        weight, bias: 0 in layers without a map, `[L,D,D]` and `[L,D]`.
        gate: weight of each layer [L].
        site: where it acts, `<stack>.<point>` (static).
        tokens: a token selector (static).
        provenance: where it comes from (static).
    """

    weight: Float[Array, "l d d"]
    bias: Float[Array, "l d"]
    gate: Float[Array, " l"]
    site: str = flax.struct.field(pytree_node=False)
    tokens: str = flax.struct.field(pytree_node=False)
    provenance: Provenance = flax.struct.field(pytree_node=False)

    def to_edit(
        self,
        strength: Float[Array, "..."] | float = 1.0,
        step_weights: Float[Array, " s"] | None = None,
    ) -> Affine:
        """Goes `strength` of the way to where the map leads."""
        return Affine(
            site=self.site,
            tokens=self.tokens,
            strength=jnp.asarray(strength, jnp.float32),
            gate=self.gate,
            step_weights=step_weights,
            weight=self.weight,
            bias=self.bias,
        )

    def control(self, key: Array) -> AffineMap:
        """The same map in a random basis: every singular value and length is kept, the meaning of
        the directions is not.
        """
        depth, width = self.bias.shape
        keys = jax.random.split(key, depth)
        basis = jax.vmap(lambda k: jax.random.orthogonal(k, width, dtype=jnp.float32))(keys)
        weight = jnp.einsum("lij,ljk,lmk->lim", basis, self.weight, basis)
        bias = jnp.einsum("lij,lj->li", basis, self.bias)
        details = {"control_of": dataclasses.asdict(self.provenance)}
        provenance = Provenance(self.provenance.policy, "control", details)
        return self.replace(weight=weight, bias=bias, provenance=provenance)  # type: ignore[attr-defined]


def affine_map(
    policy: Policy,
    towards: Sequence[RawObs],
    away: Sequence[RawObs],
    tap: Tap,
    key: Array,
    *,
    anchored: bool = True,
    ridge: float = 1e-5,
    batch: int = 64,
    **details: Any,
) -> AffineMap:
    """Fits the map from `away` to `towards`.

    Args:
        policy: the policy.
        towards: observations in the wanted condition.
        away: the same situations in the other condition, in the same order.
        tap: the tokens and layers that are mapped; without `reduce`, in the vision or VLM stack.
        key: one PRNG key; both observations of a pair get the same noise.
        anchored: fit the map to leave `towards` in place too.
        ridge: penalty of the weights, as a share of the mean feature variance.
        batch: observations at a time.
        **details: JSON values for the provenance: what the conditions are.

    Raises:
        ValueError: groups of different or no length, or a tap that does not give tokens of the
            prefix; a batch below 1, a negative ridge, or activations that do not
            determine a map.
    """
    if batch < 1 or not 0 <= ridge < np.inf:
        raise ValueError(f"batch={batch}, ridge={ridge}: expected at least 1, and 0 or more.")
    if len(towards) != len(away) or not len(away):
        raise ValueError(
            f"{len(towards)} and {len(away)} observations are not pairs: give the same situations "
            "in both conditions, in the same order."
        )
    if tap.reduce is not None or tap.stack == "action":
        raise ValueError(f"{tap}: expected a tap on the prefix that keeps its tokens (no reduce).")
    depth = policy.spec.stacks[tap.stack].depth
    width = policy.spec.stacks[tap.stack].width
    layers = resolve_layers(tap.layers, depth)
    details |= {"pairs": len(away), "anchored": anchored, "ridge": ridge, "tap": str(tap)}
    found = AffineMap(
        weight=jnp.zeros((depth, width, width), jnp.float32),
        bias=jnp.zeros((depth, width), jnp.float32),
        gate=jnp.zeros(depth, jnp.float32).at[jnp.array(layers)].set(1.0),
        site=tap.site,
        tokens=tap.tokens,
        provenance=Provenance(policy.spec.fingerprint, "affine_map", details),
    )
    keys = jax.random.split(key, len(away))
    sources = (away, towards) if anchored else (away,)

    def tokens(raw: Sequence[RawObs], rows: np.ndarray, layer: int, edits: tuple[Edit, ...]):
        obs = policy.prepare([raw[int(i)] for i in rows])
        at = Tap(tap.site, (layer,), tap.tokens)
        values = policy.sample(obs, keys[rows], edits=edits, taps=(at,)).taps[str(at)]
        return np.asarray(values, np.float64).reshape(len(rows), -1, width)

    for layer in layers:
        sums = _Sums(width)
        for start in range(0, len(away), batch):
            rows = np.arange(start, start + batch) % len(away)  # one shape, so one compilation
            fresh = min(batch, len(away) - start)
            wanted = tokens(towards, rows, layer, ())
            for raw in sources:
                sums.add(tokens(raw, rows, layer, (found.to_edit(),))[:fresh], wanted[:fresh])
        try:
            weight, bias = sums.solve(ridge)
        except np.linalg.LinAlgError:
            weight = bias = np.array(np.nan)
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(
                f"layer {layer} at {tap}: the activations fix no finite map; give more "
                "observations, or a larger ridge."
            )
        found = found.replace(  # type: ignore[attr-defined]
            weight=found.weight.at[layer].set(jnp.asarray(weight, jnp.float32)),
            bias=found.bias.at[layer].set(jnp.asarray(bias, jnp.float32)),
        )
    return found


class _Sums:
    """Normal equations of (wanted - x) = x @ weight + bias, in batches."""

    def __init__(self, width: int):
        self.gram = np.zeros((width + 1, width + 1))
        self.cross = np.zeros((width + 1, width))

    def add(self, x: Float[np.ndarray, "n t d"], wanted: Float[np.ndarray, "n t d"]) -> None:
        x, wanted = (v.reshape(-1, v.shape[-1]) for v in (x, wanted))
        design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        self.gram += design.T @ design
        self.cross += design.T @ (wanted - x)

    def solve(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """(weight, bias); the bias is not penalised."""
        mean = self.gram[-1, :-1] / self.gram[-1, -1]
        variance = np.diag(self.gram)[:-1] / self.gram[-1, -1] - mean**2
        penalty = np.append(np.full(len(mean), ridge * variance.mean() * self.gram[-1, -1]), 0.0)
        solution = np.linalg.solve(self.gram + np.diag(penalty), self.cross)
        return solution[:-1], solution[-1]
