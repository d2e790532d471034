"""`Gate`: the last word on an action, whoever proposed it.

Every action lies between the one that holds the robot still (`RobotPreset.fallback`) and the
proposed one, in every dimension: the gate can only shrink. So braking and standing still are always
allowed, and a limit that would ask for more motion than was proposed gives way. It knows nothing of
policies, monitors or pictures, and what it does depends on the actions, the robot's state and its
own last action alone.

Cost: some NumPy operations on a chunk.
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
    """One axis of the workspace box: where the robot may be.

    Attributes:
        action: dimension whose actions are changes of position along the axis.
        state: entry of the raw state that holds the position.
        low, high: of the position, in the state's units.
        gain: change of the position by an action of 1.
    """

    action: int
    state: int
    low: float
    high: float
    gain: float = 1.0


@dataclasses.dataclass(frozen=True)
class Gate:
    """Limits in the robot's units; None and () are no limit.

    Attributes:
        low, high: of each action dimension.
        velocity: largest distance of an action from standing still, of each dimension.
        acceleration: largest growth from one action to the next, of each dimension.
        box: where the robot may be.
        gripper: action dimension of the gripper.
        gripper_steps: actions after a change of the gripper in which it does not change again; 0
            is no latch.
        gripper_middle: of the gripper's commands: a change is one of side.

    Raises:
        ValueError: a limit that is none.
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
        """ValueError where it is the gate of another robot, or of one that cannot hold still."""
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
        """The chunk as it may go out.

        Args:
            actions: the proposed chunk, finite.
            rest: the action that holds the robot still in this state.
            state: the raw state.
            last: what went before; None at the beginning of an episode.
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
        """The action that ends inside the wall, or no further outside than it began."""
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
        """What to remember of a chunk of which the first actions were executed."""
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
    """The last action, and actions since the gripper changed."""

    action: Float[np.ndarray, " a"]
    since_gripper: float


def between(action: np.ndarray, rest: Any, proposed: Any) -> Any:
    """An action brought between two others, dimension by dimension."""
    return np.clip(action, np.minimum(rest, proposed), np.maximum(rest, proposed))


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_gate(path: str | Path) -> Gate:
    """A gate from a JSON file with the fields of `Gate`; `box` is a list of objects.

    Raises:
        FileNotFoundError: there is none.
        ValueError: other keys, or a limit that is none; names the file.
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
    """Which action dimensions stand still at 0: those whose fallback does not follow the state."""
    followed = {a for a, _ in preset.fallback.from_state} if preset.fallback else set()
    return [a not in followed for a in range(preset.action_dim)]
