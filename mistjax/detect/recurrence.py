"""One LSTM layer: a step, and whole sequences with a gradient that is quick on a CPU.

Differentiating the scan would add up a [h, 4h] product at every step. Here the backward scan only
carries the gradient of the gates, and that of the recurrent weights is one matmul over all steps at
the end. Memory: gates and states of every step, as for the plain scan.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Carry = tuple[Array, Array]


def dense(p: dict[str, Any], x: Array) -> Array:
    """x @ kernel + bias."""
    return x @ p["kernel"] + p["bias"]


def lstm_cell(hidden: dict[str, Any], carry: Carry, projected: Float[Array, "b g"]) -> Carry:
    """One step: (hidden state, cell state). Gates are input, forget, cell, output.

    Args:
        hidden: recurrent dense map.
        carry: states of the previous step.
        projected: dense map of this step's input.
    """
    h, c = carry
    gate_in, forget, new, out = jnp.split(projected + dense(hidden, h), 4, axis=-1)
    c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(gate_in) * jnp.tanh(new)
    return jax.nn.sigmoid(out) * jnp.tanh(c), c


def _scan(hidden: PyTree, projected: Float[Array, "t b g"]) -> Float[Array, "t b h"]:
    zero = jnp.zeros((projected.shape[1], hidden["kernel"].shape[0]), projected.dtype)

    def body(carry: Carry, x: Array) -> tuple[Carry, Array]:
        carry = lstm_cell(hidden, carry, x)
        return carry, carry[0]

    return jax.lax.scan(body, (zero, zero), projected)[1]


@jax.custom_vjp
def recurrence(hidden: PyTree, projected: Float[Array, "t b g"]) -> Float[Array, "t b h"]:
    """Hidden states after each step, from a zero state. Reverse mode only."""
    return _scan(hidden, projected)


def _forward(hidden: PyTree, projected: Array) -> tuple[Array, Any]:
    states, pull = jax.vjp(lambda x: _scan(hidden, x), projected)
    return states, (pull, states)


def _backward(saved: Any, gradient: Array) -> tuple[PyTree, Array]:
    pull, states = saved
    (gates,) = pull(gradient)
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    kernel = jnp.einsum("tbh,tbg->hg", before, gates)
    return {"kernel": kernel, "bias": gates.sum((0, 1))}, gates


recurrence.defvjp(_forward, _backward)
