"""Action faults with a known onset, for episodes that must fail and for measuring how soon a
detector sees it.

Each fault is a pure function from the actions asked for so far to the action that is carried out.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

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
