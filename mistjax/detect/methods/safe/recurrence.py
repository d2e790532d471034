"""One LSTM layer: a step, and whole sequences with a gradient that is quick on a CPU.

Forward, each step is one product of [state, input] with both kernels and one pass of tanh over all
gates. Differentiating that scan would add up a product at every step; here the backward scan only
carries the gradient of the gates, and that of both kernels is one product over all steps at the
end. Memory: gates, states and inputs of every step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Carry = tuple[Array, Array]


def dense(p: dict[str, Any], x: Array) -> Array:
    """x @ kernel + bias."""
    return x @ p["kernel"] + p["bias"][(None,) * (x.ndim - 1)]


def lstm_cell(cell: dict[str, Any], carry: Carry, x: Float[Array, "b d"]) -> Carry:
    """One step: (hidden state, cell state).

    Args:
        cell: dense maps `input` and `hidden` to 4H: gates input, forget, cell, output.
        carry: states of the previous step.
        x: this step's input.
    """
    return _advance(carry[1], dense(cell["input"], x) + dense(cell["hidden"], carry[0]))[0]


def _advance(c: Float[Array, "b h"], z: Float[Array, "b g"]) -> tuple[Carry, Array]:
    """The next states, and the gates after their activations."""
    # sigmoid(z) = tanh(z / 2) / 2 + 1 / 2: one tanh over all four gates is a single vector loop
    scale = jnp.repeat(jnp.array([[0.5, 0.5, 1.0, 0.5]], z.dtype), c.shape[-1], axis=1)
    gates = scale * jnp.tanh(scale * z) + (1 - scale)
    into, forget, new, out = jnp.split(gates, 4, axis=-1)
    c = forget * c + into * new
    return (out * jnp.tanh(c), c), gates


def _scan(cell: PyTree, inputs: Float[Array, "t b d"]) -> tuple[Array, Array, Array]:
    """Hidden states, cell states and gates after each step."""
    hidden, into = cell["hidden"], cell["input"]
    kernel = jnp.concatenate([hidden["kernel"], into["kernel"]])
    zero = jnp.zeros((inputs.shape[1], hidden["kernel"].shape[0]), inputs.dtype)

    def body(carry: Carry, x: Array) -> tuple[Carry, tuple[Array, Array, Array]]:
        h, c = carry
        z = jnp.concatenate([h, x], axis=-1) @ kernel + (hidden["bias"] + into["bias"])[None]
        carry, gates = _advance(c, z)
        return carry, (*carry, gates)

    return jax.lax.scan(body, (zero, zero), inputs)[1]


@jax.custom_vjp
def recurrence(cell: PyTree, inputs: Float[Array, "t b d"]) -> Float[Array, "t b h"]:
    """Hidden states after each step, from a zero state. Reverse mode only."""
    return _scan(cell, inputs)[0]


def _forward(cell: PyTree, inputs: Array) -> tuple[Array, Any]:
    hidden, states, gates = _scan(cell, inputs)
    return hidden, (cell, inputs, hidden, states, gates)


def _backward(saved: Any, gradient: Array) -> tuple[PyTree, Array]:
    cell, inputs, hidden, states, gates = saved
    hidden, before = (jnp.concatenate([jnp.zeros_like(s[:1]), s[:-1]]) for s in (hidden, states))
    back = cell["hidden"]["kernel"].T
    size = back.shape[1]

    def body(carry: Carry, step: tuple[Array, ...]) -> tuple[Carry, Array]:
        dh, dc = carry
        given, c, c_before, activated = step
        into, forget, new, out = jnp.split(activated, 4, axis=-1)
        dh, peak = dh + given, jnp.tanh(c)
        dc = dc + dh * out * (1 - peak**2)
        dz = (
            dc * new * into * (1 - into),
            dc * c_before * forget * (1 - forget),
            dc * into * (1 - new**2),
            dh * peak * out * (1 - out),
        )
        dz = jnp.concatenate(dz, axis=-1)
        return (dz @ back, dc * forget), dz

    zero = jnp.zeros_like(gradient[0])
    steps = (gradient, states, before, gates)
    dz = jax.lax.scan(body, (zero, zero), steps, reverse=True)[1]
    kernel = jnp.einsum("tbx,tbg->xg", jnp.concatenate([hidden, inputs], axis=-1), dz)
    bias = dz.sum((0, 1))
    grads = {
        "hidden": {"kernel": kernel[:size], "bias": bias},
        "input": {"kernel": kernel[size:], "bias": bias},
    }
    return grads, dz @ cell["input"]["kernel"].T


recurrence.defvjp(_forward, _backward)
