"""Which direction (or map) answers which cause: a lookup that works on traced indices.

Causes are names: what the localiser blames (each camera, text, state) and failure causes. All
directions live stacked in one pytree, so that a compiled program picks one per batch element by
index, and another cause, direction or strength never recompiles.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mistjax.hooks.edits import Edit
from mistjax.steer.affine import AffineMap
from mistjax.steer.schedules import is_strength
from mistjax.steer.vectors import NeuronOverwrite, SteeringVector

Steering = SteeringVector | NeuronOverwrite | AffineMap


@flax.struct.dataclass
class CauseTable:
    """Cause -> direction and strength.

    Attributes:
        causes: names, in the order of their indices (static).
        names: of the K directions (static).
        kind: the edit that they make (static).
        site, tokens: where (static).
        arrays: the edit's own arrays, each [K,L,*D], layer gates multiplied in.
        rows: direction of each cause; -1 for a cause that nothing is done about [C].
        strengths: recommended strength of each cause [C].
    """

    causes: tuple[str, ...] = flax.struct.field(pytree_node=False)
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    kind: type[Edit] = flax.struct.field(pytree_node=False)
    site: str = flax.struct.field(pytree_node=False)
    tokens: str = flax.struct.field(pytree_node=False)
    arrays: dict[str, Float[Array, "k l *_d"]]
    rows: Int[Array, " c"]
    strengths: Float[Array, " c"]

    def index(self, cause: str) -> int:
        """Index of a cause; ValueError when it is not in the table."""
        if cause not in self.causes:
            raise ValueError(f"no cause {cause!r}: the table has {list(self.causes)}.")
        return self.causes.index(cause)

    def select(
        self,
        cause: Int[Array, "..."] | int,
        strength: Float[Array, "..."] | float = 1.0,
        step_weights: Float[Array, " s"] | None = None,
    ) -> Edit:
        """The edit that answers a cause.

        Args:
            cause: an index into `causes`, or one per batch element [B]; negative means none.
            strength: times the cause's recommended strength; a scalar or one per element.
            step_weights: see `Edit`.

        Returns:
            One edit. With a cause per element its arrays are [L,B,1,*D]. Elements without a
            direction have strength 0 and pass through bit for bit.
        """
        cause = jnp.asarray(cause)
        known = jnp.maximum(cause, 0)
        row = self.rows[known]
        active = (cause >= 0) & (row >= 0)
        full = jnp.where(active, self.strengths[known] * strength, 0.0)
        arrays = {name: array[jnp.maximum(row, 0)] for name, array in self.arrays.items()}
        if cause.ndim:
            arrays = {name: jnp.swapaxes(a, 0, 1)[:, :, None] for name, a in arrays.items()}
        return self.kind(
            site=self.site, tokens=self.tokens, strength=full, step_weights=step_weights, **arrays
        )


def cause_table(
    directions: Mapping[str, Steering], causes: Mapping[str, tuple[str, float] | None]
) -> CauseTable:
    """Stacks directions of one kind and site.

    Args:
        directions: by name.
        causes: cause -> (name of its direction, recommended strength), or None for a cause that
            nothing is done about.

    Raises:
        ValueError: nothing to stack, directions of different sites, tokens or kinds, or a cause
            that names a direction which does not exist or has a strength that is not finite.
    """
    if not directions:
        raise ValueError("a steering table needs at least one direction.")
    places = {
        name: (type(direction).__name__, direction.site, direction.tokens)
        for name, direction in directions.items()
    }
    if len(set(places.values())) > 1:
        raise ValueError(f"the directions of a table share kind, site and tokens; got {places}.")
    names = tuple(directions)
    wrong = {name: c[1] for name, c in causes.items() if c and not is_strength(c[1])}
    if wrong or not causes:
        raise ValueError(f"causes have strengths {wrong}: expected some, each a finite number.")
    unknown = sorted({c[0] for c in causes.values() if c is not None} - set(names))
    if unknown:
        raise ValueError(f"causes name directions {unknown}: there are {list(names)}.")
    chosen = [(-1, 0.0) if c is None else (names.index(c[0]), c[1]) for c in causes.values()]
    rows, strengths = zip(*chosen, strict=True)
    layers = [_arrays(direction) for direction in directions.values()]
    first = next(iter(directions.values()))
    return CauseTable(
        causes=tuple(causes),
        names=names,
        kind=type(first.to_edit()),
        site=first.site,
        tokens=first.tokens,
        arrays={name: jnp.stack([each[name] for each in layers]) for name in layers[0]},
        rows=jnp.array(rows),
        strengths=jnp.array(strengths, jnp.float32),
    )


def _arrays(direction: Steering) -> dict[str, Array]:
    """What its edit needs, the layer gate multiplied into the array that it weighs."""
    gate = direction.gate[:, None]
    if isinstance(direction, AffineMap):
        return {"weight": direction.weight * gate[..., None], "bias": direction.bias * gate}
    if isinstance(direction, SteeringVector):
        return {"vector": direction.vector * gate}
    return {"mask": direction.mask * gate, "value": direction.value}
