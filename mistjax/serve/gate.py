"""`Gate`: kinematic limits on every action, whoever proposed it.

In every dimension an action that passes lies between the one that holds the robot still
(`RobotPreset.fallback`) and the proposed one: the gate can only shrink. Braking and standing still
are therefore always allowed, and a limit that could only be met by more motion than was proposed
gives way. The gate depends on the actions, the robot's state and its own last action alone, not on
policies, monitors or pictures.

Cost: a few NumPy operations per action.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mistjax.files import read_json
from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.protocol import PolicySpec


@dataclasses.dataclass(frozen=True)
class Wall:
    """One axis of the workspace box.

    Attributes:
        action: action dimension that commands a change of position along the axis.
        state: entry of the raw state that holds the position.
        low, high: allowed positions, in the state's units.
        gain: change of position per unit of action.
    """

    action: int
    state: int
    low: float
    high: float
    gain: float = 1.0


@dataclasses.dataclass(frozen=True)
class Gate:
    """Limits in the robot's units, one number per action dimension; None or () is no limit.

    Attributes:
        low, high: bounds of an action.
        velocity: largest distance of an action from the one that holds still.
        acceleration: largest change from one action to the next.
        box: workspace limits.
        gripper: action dimension of the gripper.
        gripper_steps: latch: for so many actions after the gripper has changed sides it does not
            change back; 0 for no latch.
        gripper_middle: command that separates open from closed.

    Raises:
        ValueError: a limit that is not a number, or is out of range.
    """

    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    velocity: tuple[float, ...] | None = None
    acceleration: tuple[float, ...] | None = None
    box: tuple[Wall, ...] = ()
    gripper: int | None = None
    gripper_steps: int = 0
    gripper_middle: float = 0.0

    def __post_init__(self):
        for name in ("velocity", "acceleration"):
            values = getattr(self, name)
            if values is not None and not all(_real(v) and v >= 0 for v in values):
                raise ValueError(f"{name} is {values}: expected numbers of 0 or more.")
        for name in ("low", "high"):
            if getattr(self, name) is not None and not all(map(_real, getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)}: expected numbers.")
        for wall in self.box:
            if not all(map(_real, (wall.low, wall.high, wall.gain))) or wall.low > wall.high:
                raise ValueError(f"{wall} is no range of positions.")
        steps = self.gripper_steps
        if not isinstance(steps, int) or steps < 0 or (steps and self.gripper is None):
            raise ValueError(
                f"gripper_steps is {steps}, gripper {self.gripper}: expected a whole number of 0 "
                "or more, and which dimension the gripper is."
            )

    def check(self, spec: PolicySpec, preset: RobotPreset) -> None:
        """Raises ValueError where the gate does not fit the robot, or nothing holds it still."""
        width = spec.action_dim
        for name in ("low", "high", "velocity", "acceleration"):
            values = getattr(self, name)
            if values is not None and len(values) != width:
                raise ValueError(
                    f"the gate's {name} has {len(values)} numbers, and an action of "
                    f"{spec.name!r} has {width}."
                )
        walls = all(0 <= w.action < width and 0 <= w.state < preset.state_dim for w in self.box)
        if not walls or not (self.gripper is None or 0 <= self.gripper < width):
            raise ValueError(
                f"the gate names a dimension that {spec.name!r} lacks: it has {width} of action "
                f"and {preset.state_dim} of state."
            )
        if preset.fallback is None:
            raise ValueError(
                f"preset {preset.name!r} does not say what holds the robot still, towards which a "
                "gate shrinks: give RobotPreset a `fallback`."
            )

    def __call__(
        self,
        actions: Float[np.ndarray, "h a"],
        rest: Float[np.ndarray, " a"],
        state: Float[np.ndarray, " s"],
        last: GateMemory | None = None,
    ) -> Float[np.ndarray, "h a"]:
        """The chunk within the limits.

        Args:
            actions: the proposed chunk, finite.
            rest: the action that holds the robot still in this state.
            state: the raw state.
            last: memory of the actions before; None at the beginning of an episode.
        """
        memory = last or GateMemory(np.asarray(rest, np.float64), math.inf)
        before, since = memory.action, memory.since_gripper
        places = {i: float(state[wall.state]) for i, wall in enumerate(self.box)}
        out = np.empty_like(actions)
        for step, proposed in enumerate(actions):
            action = np.asarray(proposed, np.float64)
            if self.acceleration is not None:
                grown = np.asarray(self.acceleration)
                action = np.clip(action, before - grown, before + grown)
            if self.velocity is not None:
                reach = np.asarray(self.velocity)
                action = np.clip(action, rest - reach, rest + reach)
            if self.low is not None or self.high is not None:
                low = -math.inf if self.low is None else np.asarray(self.low)
                high = math.inf if self.high is None else np.asarray(self.high)
                action = np.clip(action, low, high)
            action = between(action, rest, proposed)
            for i, wall in enumerate(self.box):
                action[wall.action] = self._inside(wall, places[i], action[wall.action], rest)
                places[i] += wall.gain * float(action[wall.action] - rest[wall.action])
            since += 1
            if self.gripper is not None and self.gripper_steps:
                g = self.gripper
                if self._side(action[g]) != self._side(before[g]):
                    if since <= self.gripper_steps:
                        action[g] = between(np.asarray(before[g]), rest[g], action[g])
                    if self._side(action[g]) != self._side(before[g]):
                        since = 0
            out[step] = np.where(action == proposed, proposed, action)
            out[step] = between(out[step], rest, proposed)
            before = out[step].astype(np.float64)
        return out

    def _inside(self, wall: Wall, place: float, action: float, rest: np.ndarray) -> float:
        """The action that ends inside the wall, or no further outside than it started."""
        still = float(rest[wall.action])
        if not math.isfinite(place):
            return still
        ends = place + wall.gain * (action - still)
        allowed = min(max(ends, min(wall.low, place)), max(wall.high, place))
        if allowed == ends or wall.gain == 0:
            return action
        return float(between(np.asarray(still + (allowed - place) / wall.gain), still, action))

    def _side(self, command: float) -> bool:
        return bool(command >= self.gripper_middle)

    def after(
        self, sent: Float[np.ndarray, "h a"], executed: int, last: GateMemory | None, rest: Any
    ) -> GateMemory:
        """The memory after the first `executed` actions of a chunk."""
        memory = last or GateMemory(np.asarray(rest, np.float64), math.inf)
        before, since = memory.action, memory.since_gripper
        for action in np.asarray(sent[:executed], np.float64):
            since += 1
            g = self.gripper
            if g is not None and self._side(action[g]) != self._side(before[g]):
                since = 0
            before = action
        return GateMemory(before, since)


@dataclasses.dataclass(frozen=True)
class GateMemory:
    """The last action executed, and how many there were since the gripper changed sides."""

    action: Float[np.ndarray, " a"]
    since_gripper: float


def between(action: np.ndarray, rest: Any, proposed: Any) -> Any:
    """The action clipped between two others, dimension by dimension."""
    return np.clip(action, np.minimum(rest, proposed), np.maximum(rest, proposed))


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_gate(path: str | Path) -> Gate:
    """A gate from a JSON file with the fields of `Gate`; `box` is a list of objects.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unknown key, or an invalid limit; names the file.
    """
    data = read_json(Path(path))
    known = {field.name for field in dataclasses.fields(Gate)}
    try:
        if surplus := sorted(set(data) - known):
            raise ValueError(f"it has keys {surplus}: expected some of {sorted(known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        values["box"] = tuple(Wall(**wall) for wall in values.get("box", ()))
        return Gate(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no gate: {error}") from None


def is_velocity(preset: RobotPreset) -> Sequence[bool]:
    """Which action dimensions are at rest at 0: those whose fallback does not follow the state."""
    followed = {a for a, _ in preset.fallback.from_state} if preset.fallback else set()
    return [a not in followed for a in range(preset.action_dim)]
