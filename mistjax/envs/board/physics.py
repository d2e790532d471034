"""The board's physics: stones, gantry and fingers in C MuJoCo, and the privileged `World` read from
it.

One control step is 0.1 s. The setpoint is the *current* position plus the action times `STEP`, not
the last setpoint, so the observed state is Markov. Cost: about 0.2 ms a control step.
"""

# MuJoCo ships no type stubs.
# pyright: reportAttributeAccessIssue=false

import dataclasses

import mujoco
import numpy as np
from jaxtyping import Float, Shaped

from mistjax.envs.board import outcome
from mistjax.envs.board import scene as s
from mistjax.envs.board.episode import Start

STEP = 0.020
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_CLOSED = -0.01


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Where everything is, in metres. `opening` is half the gap between the fingers, `command` 1
    open or -1 closed. Two are equal where every number is."""

    gripper: Float[np.ndarray, "3"]
    opening: float
    command: float
    stones: Float[np.ndarray, "stones 3"]
    colours: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, World):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return all(np.array_equal(getattr(self, n), getattr(other, n)) for n in names)

    __hash__ = None  # type: ignore[assignment]

    @property
    def held(self) -> int | None:
        """The stone that stops the closed fingers, if any."""
        there = np.ones(len(self.stones), bool)
        stone = outcome.held(self.gripper, self.opening, self.command, self.stones.T, there)
        return None if stone < 0 else int(stone)

    def lift(self, stone: int) -> float:
        """Height of a stone's centre over where it would rest below."""
        return float(outcome.lift(self.stones.T)[stone])

    def rests(self, stone: int) -> bool:
        """Whether a stone lies on the board or table, or stands there on its edge."""
        return abs(self.lift(stone)) < outcome.RESTING

    def moment(self, task: outcome.Task, tolerance: float) -> outcome.Moment:
        """See `outcome.observe`."""
        there = np.ones(len(self.stones), bool)
        return outcome.observe(
            task, self.gripper, self.opening, self.command, self.stones.T, there, tolerance
        )


class Physics:
    """A MuJoCo model and its state, moved one control step at a time."""

    def __init__(self, scene: s.BoardScene, stones: tuple[str, ...]) -> None:
        self.scene, self.colours = scene, stones
        self.model = s.build_model(scene, stones)
        self.data = mujoco.MjData(self.model)
        self.command = 1.0

    def start(self, start: Start) -> None:
        """Put everything in its place and let it settle for one control step."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:3] = start.gripper
        self.data.qpos[3:5] = s.FINGER_OPEN
        free = self.data.qpos[5:].reshape(-1, 7)
        free[:, :3] = start.positions + np.array([0.0, 0.0, 3e-4])
        free[:, 3:] = [1.0, 0.0, 0.0, 0.0]
        self.step(np.array([0.0, 0.0, 0.0, 1.0]))

    def step(self, action: Shaped[np.ndarray, "4"]) -> None:
        """Move by `action` = [dx, dy, dz, gripper], each clipped to [-1, 1]; a negative gripper
        value closes."""
        action = np.clip(action, -1.0, 1.0)
        target = self.data.qpos[:3] + action[:3] * STEP
        self.data.ctrl[:3] = np.clip(target, s.WORKSPACE_LOW, s.WORKSPACE_HIGH)
        self.command = -1.0 if action[3] < 0 else 1.0
        self.data.ctrl[3:5] = _CLOSED if self.command < 0 else s.FINGER_OPEN
        mujoco.mj_step(self.model, self.data, s.CONTROL_STEPS)
        self._refresh()

    def world(self) -> World:
        """A copy of where everything is now."""
        return World(
            gripper=self.data.qpos[:3].copy(),
            opening=float(self.data.qpos[3:5].mean()),
            command=self.command,
            stones=self.data.qpos[5:].reshape(-1, 7)[:, :3].copy(),
            colours=self.colours,
        )

    def save(self) -> Float[np.ndarray, "state"]:
        """Everything that decides the future, for `load`."""
        state = np.empty(mujoco.mj_stateSize(self.model, _STATE) + 1)
        mujoco.mj_getState(self.model, self.data, state[1:], _STATE)
        state[0] = self.command
        return state

    def load(self, state: Float[np.ndarray, "state"]) -> None:
        """Return to a saved state of a model with the same number of stones; the future repeats bit
        for bit."""
        mujoco.mj_setState(self.model, self.data, state[1:], _STATE)
        self.command = float(state[0])
        self._refresh()

    def _refresh(self) -> None:
        """Bring geom and camera poses up to the state; `mj_step` leaves those of the substep
        before."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
