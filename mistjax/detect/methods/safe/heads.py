"""Learned failure heads: SAFE-MLP (called "indep" in its release) and SAFE-LSTM.

Both read one feature vector per step. Parameters are plain pytrees: `kernel` [in, out] and `bias`
[out]. Source: SAFE (arXiv 2506.09937), section 4.2.
"""

from __future__ import annotations

from typing import Any, Literal

import flax.struct as struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from mistjax.detect.detector import Leaf
from mistjax.detect.methods.accumulate import (
    Accumulate,
    accumulate_sequence,
    accumulate_step,
    init_running,
)
from mistjax.detect.methods.safe.recurrence import dense, lstm_cell, recurrence


def _uniform_dense(key: PRNGKeyArray, n_in: int, n_out: int, bound: float) -> dict[str, Array]:
    a, b = jax.random.split(key)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)

    return {
        "kernel": draw(a, (n_in, n_out)),
        "bias": draw(b, (n_out,)),
    }


@struct.dataclass
class SafeMLP:
    """Scores every step on its own, then sums over time.

    Attributes:
        layers: tuple of dense layers, ReLU between them, the last with one output.
        accumulate: how step outputs become the score.
        output: activation of each step's output, before it is accumulated.
    """

    layers: Leaf
    accumulate: Accumulate = struct.field(pytree_node=False, default="sum")
    output: Literal["sigmoid", "relu", "none"] = struct.field(pytree_node=False, default="sigmoid")

    @classmethod
    def create(
        cls, key: PRNGKeyArray, dim: int, *, hidden: int = 256, n_layers: int = 2, **options: Any
    ) -> SafeMLP:
        """Random parameters, uniform in +-1/sqrt(fan in)."""
        sizes = [dim] + [hidden] * (n_layers - 1) + [1]
        keys = jax.random.split(key, n_layers)
        layers = tuple(
            _uniform_dense(k, i, o, i**-0.5)
            for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)
        )
        return cls(layers=layers, **options)

    def evidence(self, features: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Output of the last layer before any sigmoid."""
        x = features
        for layer in self.layers[:-1]:
            x = jax.nn.relu(dense(layer, x))
        return dense(self.layers[-1], x)[..., 0]

    def _per_step(self, features: Array) -> Array:
        activation = {"sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "none": lambda z: z}[
            self.output
        ]
        return activation(self.evidence(features))

    def init_state(self, batch: int) -> PyTree:
        return init_running(batch)

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        return accumulate_step(self.accumulate, state, self._per_step(features))

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        del state
        return self.evidence(features)

    def sequence(self, features: Float[Array, "b t d"]) -> Float[Array, "b t"]:
        """Scores of whole episodes in one batched call (training)."""
        return accumulate_sequence(self.accumulate, self._per_step(features))


@struct.dataclass
class SafeLSTM:
    """A recurrent head; its sigmoid output is the probability that the episode fails.

    Attributes:
        cells: tuple of LSTM layers, each `input` and `hidden` dense maps to 4H (gates input,
            forget, cell, output).
        readout: dense layer to one output.
        accumulate: "none" for probabilities; "sum" or "mean" accumulate them, each step learning
            from itself only.
        n_history: 0 runs over the whole past and the current step. n > 0 runs from a zero state
            over the n *previous* steps only, padded with zeros.
    """

    cells: Leaf
    readout: Leaf
    accumulate: Accumulate = struct.field(pytree_node=False, default="none")
    n_history: int = struct.field(pytree_node=False, default=0)

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        dim: int,
        *,
        hidden: int = 256,
        n_layers: int = 1,
        weight_scale: float = 1.0,
        **options: Any,
    ) -> SafeLSTM:
        """Random parameters, uniform in +-1/sqrt(hidden); `weight_scale` multiplies the kernels."""
        keys = jax.random.split(key, 2 * n_layers + 1)
        cells = tuple(
            {
                "input": _uniform_dense(
                    keys[2 * i], hidden if i else dim, 4 * hidden, hidden**-0.5
                ),
                "hidden": _uniform_dense(keys[2 * i + 1], hidden, 4 * hidden, hidden**-0.5),
            }
            for i in range(n_layers)
        )
        head = cls(
            cells=cells, readout=_uniform_dense(keys[-1], hidden, 1, hidden**-0.5), **options
        )
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x * weight_scale if path[-1].key == "kernel" else x, head
        )

    @property
    def dim(self) -> int:
        """Feature dimension D."""
        return self.cells[0]["input"]["kernel"].shape[0]

    def _zero_carry(self, batch: int) -> PyTree:
        widths = [cell["hidden"]["kernel"].shape[0] for cell in self.cells]
        return tuple((jnp.zeros((batch, width), jnp.float32),) * 2 for width in widths)

    def _outputs(self, features: Float[Array, "b t d"]) -> Float[Array, "b t"]:
        """Readout after each step, from a zero state."""
        x = features.swapaxes(0, 1)
        for cell in self.cells:
            x = recurrence(cell, x)
        return dense(self.readout, x)[..., 0].T

    def init_state(self, batch: int) -> PyTree:
        memory = (
            {"window": jnp.zeros((batch, self.n_history, self.dim), jnp.float32)}
            if self.n_history
            else {"carry": self._zero_carry(batch)}
        )
        return {**memory, "running": init_running(batch)}

    def _advance(self, state: PyTree, features: Array) -> tuple[PyTree, Array]:
        if self.n_history:
            window = state["window"]
            z = self._outputs(window)[:, -1]
            return {"window": jnp.concatenate([window[:, 1:], features[:, None]], axis=1)}, z
        x, carries = features, []
        for cell, carry in zip(self.cells, state["carry"], strict=True):
            carry = lstm_cell(cell, carry, x)
            carries.append(carry)
            x = carry[0]
        return {"carry": tuple(carries)}, dense(self.readout, x)[..., 0]

    def step(
        self, state: PyTree, features: Float[Array, "b d"]
    ) -> tuple[PyTree, Float[Array, " b"]]:
        memory, z = self._advance(state, features)
        running, score = accumulate_step(self.accumulate, state["running"], jax.nn.sigmoid(z))
        return {**memory, "running": running}, score

    def logit(self, state: PyTree, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Readout at this step. With `n_history` it does not depend on the current features (by
        construction).
        """
        return self._advance(state, features)[1]

    def evidence(self, features: Float[Array, "b t d"]) -> Float[Array, "b t"]:
        """Readout before the sigmoid for whole episodes."""
        n = self.n_history
        if not n:
            return self._outputs(features)
        b, t, d = features.shape
        padded = jnp.pad(features, ((0, 0), (n, 0), (0, 0)))
        windows = padded[:, jnp.arange(t)[:, None] + jnp.arange(n)[None]]
        return self._outputs(windows.reshape(b * t, n, d))[:, -1].reshape(b, t)

    def sequence(self, features: Float[Array, "b t d"]) -> Float[Array, "b t"]:
        """Scores of whole episodes in one batched call (training)."""
        return accumulate_sequence(
            self.accumulate, jax.nn.sigmoid(self.evidence(features)), stop_gradient=True
        )
