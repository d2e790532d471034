"""An `InputMonitor` from clean episodes: fitted to some, calibrated on others.

The fitting episodes are divided once more: 30%, spread evenly over all so that each task of a suite
is in both parts, say how large each score is on episodes that it was not fitted to, so that scores
of different inputs can be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mistjax.detect.calibration.conformal import Threshold, calibrate
from mistjax.detect.novelty.monitor import (
    LOOKS,
    InputEvidence,
    InputMonitor,
    Novelty,
    camera_features,
    change_context,
    motion_errors,
    watch,
)
from mistjax.detect.novelty.motion import fit_motion
from mistjax.detect.novelty.odometry import fit_odometer
from mistjax.detect.novelty.reading import COMMAND, FIELDS, Reading
from mistjax.policies.protocol import Policy, PolicySpec
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace

SMALLEST = np.array([[1e-3, 1e-3, 1.0], [1e-3, 1e-3, 1e-3], [0.25, 0.25, 1.0]])
"""Smallest scale of each score of a camera, the state and the text: those that are 0 in nearly all
clean episodes have no size of their own."""


@flax.struct.dataclass
class Recorded:
    """What was read in recorded episodes, padded to the longest: leading axes [E,N]."""

    readings: Reading
    commands: Float[Any, "e n x a"]
    mask: Bool[Any, "e n"]

    def __getitem__(self, rows: Any) -> Recorded:
        return jax.tree.map(lambda x: x[rows], self)

    def looks(self) -> tuple[Reading, np.ndarray]:
        """All looks one after the other, and the episode of each."""
        mask = np.asarray(self.mask)
        flat = jax.tree.map(lambda x: np.asarray(x)[mask], self.readings)
        return flat, np.nonzero(mask)[0]


def recorded(traces: Sequence[Trace]) -> Recorded:
    """Pads episodes of a policy that was recorded as `Reads`.

    Raises:
        ValueError: no episode, or one that was recorded without.
    """
    if not traces:
        raise ValueError(
            "no finished episode was given: name a run folder of `mistjax collect --inputs`."
        )
    missing = sorted({name for trace in traces for name in FIELDS if name not in trace.aux})
    if missing:
        raise ValueError(
            f"{len(traces)} episodes, without {missing}: record them with `mistjax collect "
            "--inputs`, which adds what the policy reads."
        )
    longest = max(len(trace.aux[COMMAND]) for trace in traces)

    def padded(name: str) -> np.ndarray:
        rows = [np.asarray(trace.aux[name]) for trace in traces]
        return np.stack(
            [np.pad(r, [(0, longest - len(r))] + [(0, 0)] * (r.ndim - 1)) for r in rows]
        )

    fields = {name.removeprefix("read/"): padded(name) for name in FIELDS if name != COMMAND}
    lengths = np.array([len(trace.aux[COMMAND]) for trace in traces])
    return Recorded(Reading(**fields), padded(COMMAND), np.arange(longest)[None] < lengths[:, None])


def recorded_runs(runs: Sequence[Run]) -> Recorded:
    """All finished episodes of some runs, whether they succeeded or not."""
    return recorded([trace for run in runs for trace in run.traces()])


def command_bounds(spec: PolicySpec) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of an action in model units; infinite where actions follow the state."""
    offset = spec.action_offset or (None,) * spec.action_dim

    def bound(values: Sequence[float], otherwise: float) -> np.ndarray:
        rows = zip(values, offset, spec.action_scale, strict=False)
        return np.array([otherwise if o is None else (v - o) / s for v, o, s in rows], np.float32)

    return bound(spec.action_low, -np.inf), bound(spec.action_high, np.inf)


def fit_inputs(
    policy: Policy, episodes: Recorded, *, seed: int = 0, **odometer: Any
) -> InputMonitor:
    """A monitor without a threshold (it is +inf).

    Args:
        policy: what was recorded; says what a command is and which tokens there are.
        episodes: clean ones, at least ten.
        seed: of the odometer.
        **odometer: options of `fit_odometer`.

    Raises:
        ValueError: too few episodes.
    """
    count = len(episodes.mask)
    if count < 10:
        raise ValueError(f"{count} clean episodes: fit to at least ten, better to some hundred.")
    episodes = _unpadded(episodes)
    held = held_out(count)
    first = episodes[~held]
    readings, episode = first.looks()
    commands = np.asarray(first.commands)[np.asarray(first.mask)]
    again = np.flatnonzero(episode[1:] == episode[:-1]) + 1
    low, high = command_bounds(policy.spec)
    motion = fit_motion(
        readings.state[again - 1],
        commands[again - 1],
        readings.state[again],
        low,
        high,
        policy.spec.gripper_index,
    )
    flat = readings.flat
    camera = np.asarray(camera_features(readings), np.float64)
    sign = np.ones(len(episode))
    sign[again] = np.asarray(motion.signs(jnp.asarray(commands)))[again - 1, -1]
    move = motion.predict(jnp.asarray(readings.state), jnp.asarray(commands)) - readings.state
    context = np.asarray(change_context(jnp.asarray(readings.state), move), np.float64)[again - 1]
    clean = Gaussian.of(readings.state, 1e-3)
    known = np.unique(readings.prompt)
    vocabulary = np.zeros(known[-1] + 1, bool)
    vocabulary[known] = True
    monitor = InputMonitor(
        motion=motion,
        odometer=fit_odometer(flat, readings.state, episode, seed=seed, **odometer),
        level=fit_novelty(camera, np.stack([np.ones_like(sign), sign], axis=1)),
        change=fit_novelty(camera[again] - camera[again - 1], context),
        nearest=jnp.asarray(_nearest(readings, again), jnp.float32),
        state_mean=clean.mean,
        state_precision=clean.precision,
        vocabulary=jnp.asarray(vocabulary),
        scale=jnp.ones((camera.shape[1] + 2, 3)),
        threshold=Threshold(jnp.array([np.inf], jnp.float32), 0.5, 0, 1),
        cameras=policy.spec.pictures,
        execute=commands.shape[1],
        tokens=flat.shape[2],
        words=readings.prompt.shape[1],
    )
    return _scaled(monitor, episodes[held])


def held_out(count: int) -> Bool[np.ndarray, " n"]:
    """Which 30% of so many episodes size the scores."""
    at = np.arange(count)
    return (3 * (at + 1)) // 10 > (3 * at) // 10


def _unpadded(episodes: Recorded) -> Recorded:
    """Without the trailing entries of the state that are always 0."""
    state = np.asarray(episodes.readings.state)
    used = np.flatnonzero(np.abs(state).max((0, 1)) > 0)
    width = int(used[-1]) + 1 if len(used) else 1
    return dataclasses.replace(
        episodes, readings=dataclasses.replace(episodes.readings, state=state[..., :width])
    )


@flax.struct.dataclass
class Gaussian:
    """Mean and inverse covariance."""

    mean: Float[Array, " s"]
    precision: Float[Array, "s s"]

    @classmethod
    def of(cls, rows: Float[np.ndarray, "n s"], ridge: float) -> Gaussian:
        """With `ridge` times the mean variance on the diagonal."""
        covariance = np.cov(np.asarray(rows, np.float64).T).reshape(rows.shape[1], -1)
        covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        return cls(
            jnp.asarray(rows.mean(0), jnp.float32),
            jnp.asarray(np.linalg.inv(covariance), jnp.float32),
        )


def fit_novelty(
    values: Float[np.ndarray, "n c f"],
    context: Float[np.ndarray, "n x"],
    *,
    ridge: float = 0.05,
    components: int = 96,
) -> Novelty:
    """One Gaussian per camera; `ridge` is a share of the mean variance."""
    parts = [_fit_one(values[:, c], context, ridge, components) for c in range(values.shape[1])]
    return Novelty(
        *(jnp.asarray(np.stack(column), jnp.float32) for column in zip(*parts, strict=True))
    )


def _fit_one(value, context, ridge, components):
    gram = context.T @ context + np.eye(context.shape[1])
    weights = np.linalg.solve(gram, context.T @ value)
    left = value - context @ weights
    scale = left.std(0) + 1e-3 * left.std() + 1e-6
    left = left / scale
    values, vectors = np.linalg.eigh(left.T @ left / len(left))
    values, vectors = values[::-1] + ridge * values.mean(), vectors[:, ::-1]
    kept = min(components, len(values) - 1)
    rest = 1 / values[kept:].mean()
    return weights, scale, vectors[:, :kept], 1 / values[:kept] - rest, rest


def _nearest(readings: Reading, again: np.ndarray) -> Float[np.ndarray, " c"]:
    grid = np.asarray(readings.grid).reshape(*readings.grid.shape[:2], -1)
    away = np.abs(grid[again] - grid[again - 1]).mean(-1)
    return np.maximum(np.quantile(away, 0.01, axis=0), 1e-5)


def _scaled(monitor: InputMonitor, held: Recorded) -> InputMonitor:
    """With the precision of the odometer and the size of each score, from held-out episodes."""
    errors = _odometry_errors(monitor, held)
    precision = [Gaussian.of(errors[:, c], 1e-2).precision for c in range(errors.shape[1])]
    monitor = dataclasses.replace(
        monitor, odometer=dataclasses.replace(monitor.odometer, precision=jnp.stack(precision))
    )
    ratios = np.asarray(evidence(monitor, held).ratios)
    largest = np.where(np.asarray(held.mask)[..., None, None], ratios, 0).max(1)
    smallest = np.concatenate([np.repeat(SMALLEST[:1], len(monitor.cameras), 0), SMALLEST[1:]])
    scale = np.maximum(np.quantile(largest, 0.95, axis=0), smallest)
    return dataclasses.replace(monitor, scale=jnp.asarray(scale, jnp.float32))


def _odometry_errors(monitor: InputMonitor, held: Recorded) -> Float[np.ndarray, "n c s"]:
    """Of the average over the looks in memory, where the sensor is right."""

    def one(monitor, readings, commands):
        def look(memory, x):
            reading, command = x
            error, _ = motion_errors(monitor.odometer, memory, reading, reading.state)
            memory, _ = monitor.step(memory, reading)
            return monitor.executed(memory, command), error

        start = monitor.initial_state(commands.shape[1])
        return jax.lax.scan(look, start, (readings, commands))[1]

    found = np.asarray(jax.jit(one)(monitor, *_by_look(held)))
    mask = np.asarray(held.mask).T.copy()
    mask[:LOOKS] = False
    return found[mask]


def _by_look(episodes: Recorded) -> tuple[Reading, Array]:
    return jax.tree.map(
        lambda x: jnp.swapaxes(jnp.asarray(x), 0, 1), (episodes.readings, episodes.commands)
    )


def evidence(monitor: InputMonitor, episodes: Recorded) -> InputEvidence:
    """What a monitor says of recorded episodes, [E,N,...] as they are padded."""
    found = jax.jit(watch)(monitor, *_by_look(episodes))
    return jax.tree.map(lambda x: np.swapaxes(np.asarray(x), 0, 1), found)


def calibrate_inputs(
    monitor: InputMonitor,
    episodes: Recorded,
    alpha: float,
    confidence: float | None = None,
) -> InputMonitor:
    """The monitor with one threshold for all inputs, from clean episodes that it was not fitted to,
    successes and failures alike.

    Args:
        monitor: fitted.
        episodes: see above.
        alpha: bound on the chance of any alarm in a clean episode.
        confidence: with which the bound holds for this calibration; None bounds the average over
            calibrations.
    """
    scores = evidence(monitor, episodes).score
    everything = np.ones(len(scores), bool)
    threshold = calibrate(
        scores, episodes.mask, everything, alpha, band="constant", confidence=confidence
    )
    return dataclasses.replace(monitor, threshold=threshold)
