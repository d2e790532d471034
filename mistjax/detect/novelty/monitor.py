"""`InputMonitor`: is an input unsound, and which one?

Every input has scores of its own: how unusual it is (level), how unusually it changed (change), and
for a camera whether it shows an earlier picture again, for the state whether it has drifted from
dead reckoning. Each is divided by its own size in clean episodes; the largest of them is compared
with one threshold, calibrated on the largest of whole clean episodes, so that the promise is about
all inputs at once. Its input is named, with one exception: a state that disagrees with dead
reckoning is blamed only if the cameras agree with dead reckoning rather than with the sensor;
otherwise none of the inputs is (a push, a broken actuator), and the drift so far counts no more.

This is not a failure score: it says that an input is unsound, not that the episode will fail.
Nothing is fitted to a fault. Memory of a batch element: tokens, grids and states of `LOOKS` looks.
Cost without an alarm: two projections per camera; the cameras are asked only when a state is
suspect.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.novelty.motion import MotionModel
from mistjax.detect.novelty.odometry import Odometer
from mistjax.detect.novelty.reading import Reading

LOOKS = 3
STREAMS = {
    "camera": ("level", "change", "repeated picture"),
    "state": ("level", "dead reckoning", "drift"),
    "text": ("unknown words", "changed words", ""),
}
MARGIN = 1.0
"""How much farther from the cameras' view a sensor must be than dead reckoning, to be blamed: in
standard deviations of that view. Tuned on faults that may be looked at."""
LEAK = 0.8
"""What is left of a residual in the drift after one look."""


@flax.struct.dataclass
class Novelty:
    """A Gaussian of a residual after regression on a context, one for each camera.

    The squared distance is that of the covariance plus a ridge, with all directions beyond the
    leading ones taken as equally large.

    Attributes:
        weights: context -> expected value.
        scale: standard deviation of each entry.
        directions: leading eigenvectors of the scaled residual.
        gain: of each squared component.
        rest: of the squared residual as a whole.
    """

    weights: Float[Array, "c x f"]
    scale: Float[Array, "c f"]
    directions: Float[Array, "c f k"]
    gain: Float[Array, "c k"]
    rest: Float[Array, " c"]

    def residual(
        self, value: Float[Array, "b c f"], context: Float[Array, "b x"]
    ) -> Float[Array, "b c f"]:
        """In standard deviations."""
        return (value - jnp.einsum("bx,cxf->bcf", context, self.weights)) / self.scale[None]

    def distance(
        self, value: Float[Array, "b c f"], context: Float[Array, "b x"]
    ) -> Float[Array, "b c"]:
        """Mahalanobis distance."""
        left = self.residual(value, context)
        parts = jnp.einsum("bcf,cfk->bck", left, self.directions)
        total = jnp.square(parts) * self.gain[None]
        return jnp.sqrt(total.sum(-1) + self.rest[None] * jnp.square(left).sum(-1))


@flax.struct.dataclass
class InputMemory:
    """What is remembered of each element's episode; newest look first.

    Attributes:
        tokens, grid, state: of the last looks.
        camera: features of the cameras at the last look.
        command: executed since the last look, in model units.
        prompt: at the first look.
        drift: sum of residuals, older ones less.
        looks: so far.
        named: the input named at the first alarm; -1 while there is none.
    """

    tokens: Float[Array, "b l c t"]
    grid: Float[Array, "b l c g"]
    state: Float[Array, "b l s"]
    camera: Float[Array, "b c f"]
    command: Float[Array, "b e a"]
    prompt: Int[Array, "b w"]
    drift: Float[Array, "b s"]
    looks: Int[Array, " b"]
    named: Int[Array, " b"]


@flax.struct.dataclass
class InputEvidence:
    """What is said about one look. Inputs are the cameras in the model's order, the state, the
    text.

    Attributes:
        ratios: each score over its size in clean episodes, see `STREAMS`.
        score: the largest.
        threshold: its limit.
        unsound: whether the score is above it, or not finite.
        suspect: input of the largest ratio.
        blamed: the input that this look alone names; -1 where it alarms no more than before.
        named: the input named at the episode's first alarm; the number of inputs for none of them;
            -1 without an alarm so far.
        sides: distance of the cameras' view of the motion from the sensor's minus that from dead
            reckoning's, in standard deviations; above `MARGIN` the sensor is wrong. 0 where the
            state was not suspect.
        cells: how unusual each cell of each camera is, in standard deviations; 0 before an alarm.
        entries: residual of each state entry from dead reckoning, in its own size.
        words: which tokens of the prompt changed or are unknown.
    """

    ratios: Float[Array, "b i 3"]
    score: Float[Array, " b"]
    threshold: Float[Array, " b"]
    unsound: Bool[Array, " b"]
    suspect: Int[Array, " b"]
    blamed: Int[Array, " b"]
    named: Int[Array, " b"]
    sides: Float[Array, " b"]
    cells: Float[Array, "b c 8 8"]
    entries: Float[Array, "b s"]
    words: Bool[Array, "b w"]


@flax.struct.dataclass
class InputMonitor:
    """See the module.

    Attributes:
        motion: dead reckoning.
        odometer: the cameras' view of the motion.
        level, change: of the cameras' features.
        nearest: distance to the nearest remembered picture that 99% of looks exceed, by camera.
        state_mean, state_precision: of clean states.
        vocabulary: which tokens clean prompts had; a token beyond its end is unknown.
        scale: of each ratio, in clean episodes.
        threshold: of the largest ratio.
        cameras: names (static).
    """

    motion: MotionModel
    odometer: Odometer
    level: Novelty
    change: Novelty
    nearest: Float[Array, " c"]
    state_mean: Float[Array, " s"]
    state_precision: Float[Array, "s s"]
    vocabulary: Bool[Array, " v"]
    scale: Float[Array, "i 3"]
    threshold: Threshold
    cameras: tuple[str, ...] = flax.struct.field(pytree_node=False)
    execute: int = flax.struct.field(pytree_node=False)
    tokens: int = flax.struct.field(pytree_node=False)
    words: int = flax.struct.field(pytree_node=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs; `named` counts in this order."""
        return (*self.cameras, "state", "text")

    def initial_state(self, batch: int) -> InputMemory:
        """Before the first look."""
        c, s = len(self.cameras), self.state_mean.shape[0]
        return InputMemory(
            tokens=jnp.zeros((batch, LOOKS, c, self.tokens)),
            grid=jnp.zeros((batch, LOOKS, c, 192)),
            state=jnp.zeros((batch, LOOKS, s)),
            camera=jnp.zeros((batch, c, self.level.scale.shape[1])),
            command=jnp.zeros((batch, self.execute, self.motion.low.shape[0])),
            prompt=jnp.zeros((batch, self.words), jnp.int32),
            drift=jnp.zeros((batch, s)),
            looks=jnp.zeros(batch, jnp.int32),
            named=jnp.full(batch, -1, jnp.int32),
        )

    def step(
        self, memory: InputMemory, reading: Reading, excused: Bool[Array, "b i"] | None = None
    ) -> tuple[InputMemory, InputEvidence]:
        """One look. Follow it with `executed`, once the actions are known.

        Args:
            memory: of the looks before.
            reading: what is seen.
            excused: inputs that are known to be unsound, so that another one can be blamed; None
                blames the first alone.
        """
        reading = dataclasses.replace(reading, state=reading.state[:, : self.state_mean.shape[0]])
        m, state, started = memory, reading.state, memory.looks > 0
        camera = camera_features(reading)
        reckoned = self.motion.predict(m.state[:, 0], m.command)
        move = jnp.where(started[:, None], reckoned - m.state[:, 0], 0.0)
        left = jnp.where(started[:, None], (state - reckoned) / self.motion.scale[None], 0.0)
        drift = LEAK * m.drift + left
        grid = reading.grid.reshape(*reading.grid.shape[:2], -1)
        words = jnp.where(started[:, None], m.prompt != reading.prompt, False)
        known = self.vocabulary.at[reading.prompt].get(mode="fill", fill_value=False)
        strange = ~known & (reading.prompt != 0)

        moving = jnp.max(jnp.abs(move) / self.motion.scale[None], axis=1) > 3
        change = self.change.distance(camera - m.camera, change_context(m.state[:, 0], move))
        cameras = (
            self.level.distance(camera, self.level_context(m.command, started)),
            jnp.where(started[:, None], change, 0.0),
            jnp.where(moving[:, None], self._repeated(m, grid), 0.0),
        )
        off = state - self.state_mean[None]
        states = (
            jnp.sqrt(jnp.einsum("bs,st,bt->b", off, self.state_precision, off)),
            jnp.linalg.norm(left, axis=1),
            jnp.linalg.norm(drift, axis=1),
        )
        text = (strange.sum(1), words.sum(1), jnp.zeros_like(m.looks))
        rows = [*(jnp.stack(cameras, -1)[:, i] for i in range(camera.shape[1]))]
        rows += [jnp.stack(states, -1), jnp.stack(text, -1).astype(jnp.float32)]
        ratios = jnp.stack(rows, axis=1) / self.scale[None]
        score = ratios.max((1, 2))
        unsound = self.threshold.alarm(m.looks, score)
        if excused is None:
            counted, first = ratios, unsound & (m.named < 0)
        else:
            counted = jnp.where(excused[..., None], 0.0, ratios)
            first = self.threshold.alarm(m.looks, counted.max((1, 2)))
        suspect = jnp.argmax(jnp.where(jnp.isnan(counted), jnp.inf, counted).max(2), axis=1)
        by_motion = (suspect == len(self.cameras)) & (ratios[:, -2, 0] < ratios[:, -2].max(-1))
        sides = jax.lax.cond(
            jnp.any(first & by_motion),
            lambda: jnp.where(first & by_motion, self._sides(m, reading, reckoned), 0.0),
            lambda: jnp.zeros_like(score),
        )
        innocent = first & by_motion & (sides <= MARGIN)
        name = jnp.where(innocent, len(self.inputs), suspect).astype(jnp.int32)
        blamed = jnp.where(first, name, -1)
        named = jnp.where(m.named < 0, blamed, m.named)
        cells = jax.lax.cond(
            jnp.any(first),
            lambda: jnp.where(first[:, None, None, None], self._cells(camera, m), 0.0),
            lambda: jnp.zeros((*camera.shape[:2], 8, 8)),
        )
        evidence = InputEvidence(
            ratios=ratios,
            score=score,
            threshold=self.threshold.at(m.looks),
            unsound=unsound,
            suspect=suspect,
            blamed=blamed,
            named=named,
            sides=sides,
            cells=cells,
            entries=left,
            words=words | strange,
        )
        flat = reading.flat
        seen = InputMemory(
            tokens=_push(m.tokens, flat, started),
            grid=_push(m.grid, grid, started),
            state=_push(m.state, state, started),
            camera=camera,
            command=m.command,
            prompt=jnp.where(started[:, None], m.prompt, reading.prompt),
            drift=jnp.where(innocent[:, None], 0.0, drift),
            looks=m.looks + 1,
            named=named,
        )
        return seen, evidence

    def executed(self, memory: InputMemory, actions: Float[Array, "b h a"]) -> InputMemory:
        """After the chunk of this look was decided (model units); what of it is not executed, and
        padding, is left out.
        """
        width = self.motion.low.shape[0]
        return dataclasses.replace(memory, command=actions[:, : self.execute, :width])

    def level_context(
        self, command: Float[Array, "b e a"], started: Bool[Array, " b"]
    ) -> Float[Array, "b 2"]:
        """1, and whether the gripper is to be open: the pictures differ."""
        sign = jnp.where(started, self.motion.signs(command)[:, -1], 1.0)
        return jnp.stack([jnp.ones_like(sign), sign], axis=1)

    def _repeated(self, m: InputMemory, grid: Float[Array, "b c g"]) -> Float[Array, "b c"]:
        """How much nearer than usual the nearest remembered picture is, in logarithms."""
        away = jnp.abs(m.grid - grid[:, None]).mean(-1)
        away = jnp.where(jnp.arange(LOOKS)[None, :, None] < m.looks[:, None, None], away, jnp.inf)
        return jnp.maximum(jnp.log(self.nearest[None] / (away.min(1) + 1e-6)), 0.0)

    def _sides(
        self, m: InputMemory, reading: Reading, reckoned: Float[Array, "b s"]
    ) -> Float[Array, " b"]:
        """See `InputEvidence.sides`; averaged over the looks in memory."""
        sensor, reckoning = motion_errors(self.odometer, m, reading, reckoned)

        def squared(error):
            return jnp.einsum("bcs,cst,bct->bc", error, self.odometer.precision, error)

        return (jnp.sqrt(squared(sensor)) - jnp.sqrt(squared(reckoning))).sum(1)

    def _cells(self, camera: Float[Array, "b c f"], m: InputMemory) -> Float[Array, "b c 8 8"]:
        """Root mean square of a cell's colours and detail, in standard deviations."""
        left = self.level.residual(camera, self.level_context(m.command, m.looks > 0))
        return cell_sizes(left[..., -256:])


def camera_features(reading: Reading) -> Float[Array, "b c f"]:
    """What a camera's novelty is measured in: its mean token, and its cells."""
    b, c = reading.tokens.shape[:2]
    parts = (reading.tokens.mean(2), reading.grid, reading.detail)
    return jnp.concatenate([part.reshape(b, c, -1) for part in parts], axis=-1)


def cell_sizes(residual: Float[Array, "*b f"]) -> Float[Array, "*b 8 8"]:
    """Root mean square of each cell's colours and detail, from the residuals of both."""
    grid, detail = residual[..., :192], residual[..., 192:]
    square = jnp.square(grid).reshape(*detail.shape, 3).sum(-1) + jnp.square(detail)
    return jnp.sqrt(square / 4).reshape(*detail.shape[:-1], 8, 8)


def change_context(state: Float[Array, "b s"], move: Float[Array, "b s"]) -> Float[Array, "b x"]:
    """What a change of the pictures is expected from: where the robot was, and the motion."""
    return jnp.concatenate([jnp.ones_like(state[:, :1]), state, move], axis=1)


def motion_errors(
    odometer: Odometer, m: InputMemory, reading: Reading, reckoned: Float[Array, "b s"]
) -> tuple[Float[Array, "b c s"], Float[Array, "b c s"]]:
    """The cameras' view of the motion minus the sensor's, and minus dead reckoning's; averaged over
    the looks in memory.
    """
    now = reading.flat
    known = jnp.minimum(m.looks, LOOKS)
    sensor, reckoning = 0.0, 0.0
    for look in range(LOOKS):
        there = jnp.where(look < known, 1 / jnp.maximum(known, 1), 0.0)[:, None, None]
        seen = odometer.moved(now, m.tokens[:, look], m.state[:, look])
        sensor += there * (seen - (reading.state - m.state[:, look])[:, None])
        reckoning += there * (seen - (reckoned - m.state[:, look])[:, None])
    return sensor, reckoning  # type: ignore[return-value]


def _push(past: Array, now: Array, started: Bool[Array, " b"]) -> Array:
    """The newest first; before the first look nothing is remembered, so it fills all places."""
    shifted = jnp.concatenate([now[:, None], past[:, :-1]], axis=1)
    filled = jnp.broadcast_to(now[:, None], past.shape)
    return jnp.where(started.reshape(-1, *(1,) * (past.ndim - 1)), shifted, filled)


def watch(
    monitor: InputMonitor, readings: Reading, commands: Float[Array, "n b e a"]
) -> InputEvidence:
    """Recorded episodes, look by look: leading axes [N,B] in and out."""

    def look(memory: Any, x: Any):
        reading, command = x
        memory, evidence = monitor.step(memory, reading)
        return monitor.executed(memory, command), evidence

    start = monitor.initial_state(commands.shape[1])
    return jax.lax.scan(look, start, (readings, commands))[1]
