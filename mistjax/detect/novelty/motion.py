"""Dead reckoning: what the state will be, from what it was and what was commanded.

A linear model fitted to clean episodes, so that it works for any robot and knows nothing of a
simulator. Of the gripper, the sign of each command counts; of the rest, their sum.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@flax.struct.dataclass
class MotionModel:
    """Next state = features of state and command, times weights.

    Attributes:
        weights: one column per state entry.
        scale: residual of each entry in clean episodes: its 99% quantile over 2.58, so that an
            entry with rare large residuals (a finger gap) counts as noisy.
        low, high: bounds of a command in model units.
        gripper: entry of a command, or None (static).
    """

    weights: Float[Array, "f s"]
    scale: Float[Array, " s"]
    low: Float[Array, " a"]
    high: Float[Array, " a"]
    gripper: int | None = flax.struct.field(pytree_node=False, default=None)

    def features(
        self, state: Float[Array, "b s"], command: Float[Array, "b e a"]
    ) -> Float[Array, "b f"]:
        """1, the state, the command in sum, and the gripper's signs, alone and with the state."""
        command = jnp.clip(command, self.low[None, None], self.high[None, None])
        parts = [jnp.ones_like(state[:, :1]), state, command.sum(axis=1)]
        if self.gripper is not None:
            sign = self.signs(command)
            parts += [sign, sign[:, -1:] * state]
        return jnp.concatenate(parts, axis=1)

    def signs(self, command: Float[Array, "b e a"]) -> Float[Array, "b e"]:
        """1 or -1 for each gripper command; 1 without a gripper."""
        if self.gripper is None:
            return jnp.ones(command.shape[:2])
        middle = (self.low + self.high)[self.gripper] / 2
        return jnp.where(command[..., self.gripper] < middle, -1.0, 1.0)

    def predict(
        self, state: Float[Array, "b s"], command: Float[Array, "b e a"]
    ) -> Float[Array, "b s"]:
        """The state after the command."""
        return self.features(state, command) @ self.weights


def fit_motion(
    states: Float[np.ndarray, "n s"],
    commands: Float[np.ndarray, "n e a"],
    following: Float[np.ndarray, "n s"],
    low: Float[np.ndarray, " a"],
    high: Float[np.ndarray, " a"],
    gripper: int | None,
    ridge: float = 1e-2,
) -> MotionModel:
    """The model of pairs of looks, one after the other, of clean episodes.

    Args:
        states: at the first look.
        commands: executed in between.
        following: states at the second look.
        low, high: bounds of a command.
        gripper: entry of a command.
        ridge: on the weights.
    """
    width = states.shape[1]
    empty = MotionModel(
        jnp.zeros((1, width)), jnp.ones(width), jnp.asarray(low), jnp.asarray(high), gripper
    )
    x = np.asarray(empty.features(jnp.asarray(states), jnp.asarray(commands)), np.float64)
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ following)
    scale = robust_scale(following - x @ weights)
    return dataclasses.replace(
        empty, weights=jnp.asarray(weights, jnp.float32), scale=jnp.asarray(scale, jnp.float32)
    )


def robust_scale(residual: Float[np.ndarray, "n s"]) -> Float[np.ndarray, " s"]:
    """See `MotionModel.scale`."""
    return np.maximum(np.quantile(np.abs(residual), 0.99, axis=0) / 2.58, 1e-3)
