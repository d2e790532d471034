"""Where the robot will be: the linear motion model, and a small network for what it leaves.

The monitor's linear model needs clean episodes alone; of a robot that strays, which a reckoned
state does, it knows too little: what a turn of the hand leads to depends on where the hand is, and
on the last commands of a chunk more than on the first. Entries of the state in which the network
does not help in held-out episodes are the linear model's alone.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mistjax.detect.novelty.motion import MotionModel, fit_motion, robust_scale
from mistjax.detect.novelty.networks import Layers, fit_networks, network


@flax.struct.dataclass
class Dynamics:
    """See the module.

    Attributes:
        linear: expected next state from state and command.
        mean, spread: of the network's inputs.
        layers: of the network, whose outputs are in the linear model's `scale`.
        scale: residual of each entry, as `MotionModel.scale`.
    """

    linear: MotionModel
    mean: Float[Array, " i"]
    spread: Float[Array, " i"]
    layers: Layers
    scale: Float[Array, " s"]

    def predict(
        self, state: Float[Array, "b s"], command: Float[Array, "b e a"]
    ) -> Float[Array, "b s"]:
        """The state after the command."""
        x = (_inputs(self.linear, state, command) - self.mean[None]) / self.spread[None]
        left = network(self.layers, x[:, None])[:, 0]
        return self.linear.predict(state, command) + self.linear.scale[None] * left


def fit_dynamics(
    known: MotionModel,
    states: Float[np.ndarray, "n s"],
    commands: Float[np.ndarray, "n e a"],
    following: Float[np.ndarray, "n s"],
    held: Bool[np.ndarray, " n"],
    *,
    hidden: tuple[int, ...] = (256, 128),
    steps: int = 4000,
    batch: int = 256,
    noise: float = 0.1,
    seed: int = 0,
) -> Dynamics:
    """Fits both to pairs of looks, one after the other.

    Args:
        known: a motion model of the robot; says what a command is.
        states: at the first look.
        commands: executed in between.
        following: states at the second look.
        held: pairs that measure the residual, and in which entries the network helps; neither
            model is fitted to them.
        hidden: widths of the network.
        steps: of training.
        batch: pairs per step.
        noise: on the inputs while training, in their standard deviations.
        seed: of weights, pairs and noise.
    """
    low, high, rows = np.asarray(known.low), np.asarray(known.high), ~held
    linear = fit_motion(states[rows], commands[rows], following[rows], low, high, known.gripper)
    current, command = jnp.asarray(states), jnp.asarray(commands)
    x = np.asarray(_inputs(linear, current, command))
    mean, spread = x[rows].mean(0), x[rows].std(0) + 1e-3
    unexplained = following - np.asarray(linear.predict(current, command))
    pairs = ((x - mean) / spread)[rows], (unexplained / np.asarray(linear.scale))[rows]

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.integers(0, len(pairs[0]), batch)
        return pairs[0][chosen][:, None], pairs[1][chosen][:, None]

    layers = fit_networks(
        draw,
        (x.shape[1], *hidden, states.shape[1]),
        networks=1,
        noisy=x.shape[1],
        noise=noise,
        steps=steps,
        seed=seed,
    )
    found = Dynamics(linear, jnp.asarray(mean), jnp.asarray(spread), layers, linear.scale)
    error = (following - np.asarray(found.predict(current, command)))[held]
    helps = np.abs(error).mean(0) < np.abs(unexplained[held]).mean(0)
    kept = helps[None].astype(np.float32)
    *inner, (weights, bias) = layers
    return dataclasses.replace(
        found,
        layers=(*inner, (weights * kept[None], bias * kept)),
        scale=jnp.asarray(robust_scale(np.where(helps, error, unexplained[held])), jnp.float32),
    )


def _inputs(
    model: MotionModel, state: Float[Array, "b s"], command: Float[Array, "b e a"]
) -> Float[Array, "b i"]:
    """The state, every command, and the gripper's signs."""
    clipped = jnp.clip(command, model.low[None, None], model.high[None, None])
    parts = [state, clipped.reshape(len(clipped), -1), model.signs(clipped)]
    return jnp.concatenate(parts, axis=1)
