"""Action faults with a known onset, for episodes that must fail and for measuring how soon a
detector sees it.

Each fault is a pure function from the actions asked for so far to the action that is carried out.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Shaped

Asked = Float[np.ndarray, "t 4"]
Action = Float[np.ndarray, "4"]
Corrupt = Callable[[Asked, float, np.random.Generator], Action]


def offset(asked: Asked, strength: float, rng: np.random.Generator) -> Action:
    """A constant sideways push of up to 0.5 (10 mm a step) along +x and +y."""
    return asked[-1] + strength * np.array([0.5, 0.5, 0.0, 0.0])


def noise(asked: Asked, strength: float, rng: np.random.Generator) -> Action:
    """Gaussian noise on the motion with a standard deviation of `strength`."""
    return asked[-1] + np.append(rng.normal(0.0, strength, 3), 0.0)


def noop(asked: Asked, strength: float, rng: np.random.Generator) -> Action:
    """Motion scaled by 1 - `strength`: at 1 the gripper stands still."""
    return asked[-1] * [1 - strength, 1 - strength, 1 - strength, 1.0]


def late_grasp(asked: Asked, strength: float, rng: np.random.Generator) -> Action:
    """The gripper follows its command up to 10 steps late."""
    late = max(len(asked) - 1 - round(10 * strength), 0)
    return np.append(asked[-1, :3], asked[late, 3])


def early_release(asked: Asked, strength: float, rng: np.random.Generator) -> Action:
    """The fingers are open whenever `strength` is above 0."""
    return np.append(asked[-1, :3], 1.0 if strength > 0 else asked[-1, 3])


FAULTS: dict[str, Corrupt] = {
    f.__name__: f for f in (offset, noise, noop, late_grasp, early_release)
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault to inject: its name, its strength in [0, 1], when it starts and for how many steps.

    `trigger` says from when `delay` steps are counted: "start" of the episode, the first "close"
    command, or the first step at which a stone is "held".
    """

    name: str
    strength: float = 1.0
    trigger: str = "start"
    delay: int = 0
    duration: int = 1000

    def __post_init__(self) -> None:
        if self.name not in FAULTS:
            raise ValueError(f"unknown fault {self.name!r}, expected one of {list(FAULTS)}")
        if self.trigger not in ("start", "close", "held"):
            raise ValueError(
                f"fault trigger is {self.trigger!r}, expected 'start', 'close' or 'held'"
            )
        if not 0 <= self.strength <= 1:
            raise ValueError(f"fault strength is {self.strength}, expected 0 to 1")


class FaultyBoard(gym.Wrapper):
    """A board environment whose actions go wrong.

    `info["fault_onset"]` is the step from which actions are corrupted (None before) and
    `info["fault_active"]` whether the action just taken was. The noise is drawn from the seed of
    `reset`.
    """

    def __init__(self, env: gym.Env, fault: Fault) -> None:
        super().__init__(env)
        self.fault = fault

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see `BoardEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._asked: list[Action] = []
        self._rng = np.random.default_rng(seed)
        self._triggered = 0 if self.fault.trigger == "start" else None
        self._held = info["held"] is not None
        return observation, {**info, "fault_onset": None, "fault_active": False}

    def step(self, action: Shaped[np.ndarray, "4"]) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step with the corrupted action."""
        self._asked.append(np.asarray(action, np.float64))
        now, fault = len(self._asked) - 1, self.fault
        fires = action[3] < 0 if fault.trigger == "close" else self._held
        if self._triggered is None and fires:
            self._triggered = now
        onset = None if self._triggered is None else self._triggered + fault.delay
        active = onset is not None and onset <= now < onset + fault.duration
        if active:
            action = FAULTS[fault.name](np.stack(self._asked), fault.strength, self._rng)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._held = info["held"] is not None
        started = onset if onset is not None and onset <= now else None
        info = {**info, "fault_onset": started, "fault_active": active}
        return observation, reward, terminated, truncated, info
