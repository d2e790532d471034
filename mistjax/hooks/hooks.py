"""`Hooks`: edits and taps as one value, where they are only passed on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap


@flax.struct.dataclass
class Hooks:
    """What to change and what to record in one inference; each stack takes those that name it.

    A pytree for jit: edits are arguments of a program, taps are part of it.

    Attributes:
        edits: what to change.
        taps: what to record (static).
    """

    edits: tuple[Edit, ...] = ()
    taps: tuple[Tap, ...] = flax.struct.field(pytree_node=False, default=())

    @classmethod
    def of(cls, edits: Sequence[Edit], taps: Sequence[Tap]) -> Hooks:
        """From any sequences of edits and taps.

        Cost: outside jit the arrays of edits are read, to check that they are finite. Inside jit,
        values that are not finite show up in the actions (`Sample.broken`).

        Raises:
            ValueError: a single edit or tap in place of a sequence, or an edit with NaN or Inf.
        """
        if isinstance(edits, Edit) or isinstance(taps, Tap):
            raise ValueError(
                "expected sequences of edits and of taps: put a single one in a tuple."
            )
        for edit in edits:
            for field in dataclasses.fields(edit):
                if not _finite(getattr(edit, field.name)):
                    raise ValueError(
                        f"{type(edit).__name__}.{field.name} at {edit.site!r} holds NaN or Inf."
                    )
        return cls(tuple(edits), tuple(taps))

    def check_steps(self, steps: int) -> None:
        """ValueError unless `step_weights` has one entry per flow step or decoded token: indexing
        past its end would silently return the last one.
        """
        for edit in self.edits:
            if edit.step_weights is not None and np.shape(edit.step_weights) != (steps,):
                raise ValueError(
                    f"{type(edit).__name__}.step_weights has shape {np.shape(edit.step_weights)}: "
                    f"an inference has {steps} steps."
                )


def _finite(value: Any) -> bool:
    """Whether a value holds no NaN or Inf, as far as is known: a tracer has no value yet."""
    if isinstance(value, Tracer):
        return True
    if isinstance(value, jax.Array):
        with jax.ensure_compile_time_eval():
            return bool(_all_finite(value))
    return not isinstance(value, float | np.ndarray | np.generic) or bool(np.isfinite(value).all())


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(array))
