"""`mistjax/Board-v0`: put a Go stone on a cell of a 5x5 board with a gantry gripper.

Action: [dx, dy, dz, gripper] in [-1, 1] at 10 Hz, 20 mm per unit; a negative gripper value closes
the fingers. Observation: two pictures, the state (x, y, z and half the finger gap in metres, last
gripper command) and the prompt, under openpi's keys. Row 1 is far from the front camera and column
1 on its left. Success: the supply stone of the asked colour rests on its cell, released, with the
gripper risen. The episode ends there, or is truncated after `max_steps`.

Cost of a step: 0.2 ms physics plus 0.5 ms for both pictures on one CPU core.
"""

import contextlib
import dataclasses
import operator
import os
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

import gymnasium as gym
import jax
import jax.experimental
import numpy as np
from jax._src import xla_bridge  # nothing public says whether a backend has started
from jaxtyping import Float, Shaped, UInt8
from numpy.typing import ArrayLike

from mistjax.envs.board import outcome
from mistjax.envs.board import scene as s
from mistjax.envs.board.drawing import GlCamera, board_appearance, board_poses
from mistjax.envs.board.episode import Episode, draw_episode, draw_start
from mistjax.envs.board.instructions import Task
from mistjax.envs.board.perturbations import check, perturb
from mistjax.envs.board.physics import Physics
from mistjax.envs.board.raycast import pictures, segmentation

IMAGE_KEYS = ("observation/image", "observation/wrist_image")
STATE_KEY, PROMPT_KEY = "observation/state", "prompt"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A moment of an episode, for `BoardEnv.restore`."""

    episode: Episode
    stones: tuple[str, ...]
    state: Float[np.ndarray, "state"]
    progress: outcome.Progress


_forked_from_jax = False
_x64_home: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
_enable_x64 = _x64_home.enable_x64


def _notice_fork() -> None:
    """JAX's threads do not survive a fork: what waits for them waits for ever."""
    global _forked_from_jax
    _forked_from_jax = xla_bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_notice_fork)


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """Around the ray-caster: in float32, whatever `JAX_ENABLE_X64` says, and never in a fork.

    Raises:
        RuntimeError: this process was forked after JAX had started, in which drawing would hang.
    """
    if _forked_from_jax:
        raise RuntimeError(
            "this process was forked from one that runs JAX, in which no picture can be drawn: "
            "start it with spawn, for example gymnasium.make_vec(..., vectorization_mode='async', "
            "vector_kwargs={'context': 'spawn'})."
        )
    with _enable_x64(False):
        yield


class BoardEnv(gym.Env):
    """See the module. The same seed and options give the same episode bit for bit."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": s.CONTROL_HZ}  # noqa: RUF012
    check_perturbation = staticmethod(check)

    def __init__(
        self,
        *,
        image_size: int = 64,
        max_steps: int = 120,
        tolerance: float = 0.4,
        picture_every: int = 1,
        render: str = "raycast",
        render_mode: str | None = None,
    ) -> None:
        """Make the environment.

        Args:
            image_size: pixels per side of both pictures.
            max_steps: control steps before truncation.
            tolerance: largest placement error per axis, as a share of the grid spacing.
            picture_every: draw new pictures every so many steps, and repeat them in between.
            render: "raycast" (JAX, runs anywhere) or "gl" (MuJoCo's renderer).
            render_mode: gymnasium's; "rgb_array" makes `render()` return the front picture.
        """
        if render not in ("raycast", "gl"):
            raise ValueError(f"render is {render!r}, expected 'raycast' or 'gl'")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}, expected None or 'rgb_array'")
        if min(image_size, max_steps, picture_every) < 1 or not 0 < tolerance < np.inf:
            raise ValueError(
                f"image_size is {image_size}, max_steps {max_steps}, picture_every "
                f"{picture_every}, tolerance {tolerance}: expected at least one pixel and step, "
                "and a positive share"
            )
        self.picture_every = picture_every
        self.image_size, self.max_steps, self.tolerance = image_size, max_steps, tolerance
        self.render_mode = render_mode
        self._gl = GlCamera(image_size) if render == "gl" else None
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        words = gym.spaces.Text(200, charset="abcdefghijklmnopqrstuvwxyz12345 ,_")
        state = gym.spaces.Box(-1.0, 1.0, (5,), np.float32)
        self.observation_space = gym.spaces.Dict(
            {**dict.fromkeys(IMAGE_KEYS, picture), STATE_KEY: state, PROMPT_KEY: words}
        )

    def reset(
        self, *, seed: SupportsIndex | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: decides task, layout and prompt; a perturbation draws from its own stream, so
                that a seed stays comparable with and without it.
            options: "task" (a `Task`, drawn if absent), "scene" (a `BoardScene`) and
                "perturbation" (name -> strength).

        Raises:
            ValueError: an unknown option or perturbation, or a strength outside [0, 1].
        """
        super().reset(seed=None if seed is None else operator.index(seed))
        options = dict(options or {})
        task, scene = options.pop("task", None), options.pop("scene", s.BoardScene())
        perturbation = options.pop("perturbation", {})
        if options:
            raise ValueError(
                f"unknown reset options {sorted(options)}, expected task, scene, perturbation"
            )
        if not isinstance(task, Task | None) or not isinstance(scene, s.BoardScene):
            raise ValueError(f"task is {task!r} and scene {scene!r}: expected a Task, a BoardScene")
        check(perturbation)
        what, where, disturb = self.np_random.spawn(3)
        episode = perturb(draw_episode(what, task, scene), perturbation, disturb)
        start = draw_start(episode, where)
        self._begin(episode, start.stones)
        self.physics.start(start)
        self.progress = outcome.begin(len(start.stones))
        self._measure()
        return self._observe(), self._info()

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one 0.1 s step; values outside [-1, 1] are cut. The reward is 1 on success and 0
        before.

        Raises:
            ValueError: the action has another shape, or is not finite.
            RuntimeError: there was no reset before.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (4,):
            raise ValueError(f"action is {action}; expected four finite values in [-1, 1]")
        if not np.isfinite(action).all():
            raise ValueError(f"action {action} is not finite; expected four finite values")
        if not hasattr(self, "physics"):
            raise RuntimeError("there is no episode before the first reset.")
        before = self._moment
        self.physics.step(action)
        self._measure()
        self.progress = outcome.advance(self.progress, self._asked, before, self._moment)
        success = self.is_success()
        truncated = not success and bool(self.progress.steps >= self.max_steps)
        return self._observe(), float(success), success, truncated, self._info(truncated)

    def render(self) -> UInt8[np.ndarray, "size size 3"]:  # type: ignore[override]
        """The front camera's picture."""
        return self.pictures()[0]

    def pictures(self) -> UInt8[np.ndarray, "cameras size size 3"]:
        """Both cameras' pictures, front first."""
        if self._gl:
            return self._gl.pictures(self.physics.model, self.physics.data, self.episode.scene)
        poses = board_poses(self.physics.model, self.physics.data)
        shadow = self.episode.scene.shadow
        with _drawing():
            return np.asarray(
                pictures(poses, self._appearance, size=self.image_size, shadow=shadow)
            )

    def segmentation(self) -> Shaped[np.ndarray, "cameras size size"]:
        """What each pixel of `pictures` shows, by the ids of `drawing.solid_ids`."""
        poses = board_poses(self.physics.model, self.physics.data)
        with _drawing():
            return np.asarray(segmentation(poses, self._appearance, size=self.image_size))

    def snapshot(self) -> Snapshot:
        """This moment, to come back to with `restore` here or in another environment."""
        return Snapshot(self.episode, self.physics.colours, self.physics.save(), self.progress)

    def restore(self, snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return to a snapshot; the same actions then repeat the same future bit for bit."""
        self._begin(snapshot.episode, snapshot.stones)
        self.physics.load(snapshot.state)
        self.progress = snapshot.progress
        self._measure()
        return self._observe(), self._info()

    @property
    def goal(self) -> int:
        """Index of the stone that the task asks for: the supply stone of its colour."""
        return self.physics.colours.index(self.episode.task.colour)

    @property
    def target(self) -> Float[np.ndarray, "2"]:
        """Centre of the task's cell in metres."""
        return s.cell_xy(self.episode.task.row, self.episode.task.column)

    def is_success(self) -> bool:
        """Whether the goal stone rests on its cell, released, with the gripper risen."""
        return bool(self._moment.success)

    def failure_cause(self) -> str:
        """Why the episode failed if it ended now; see `outcome.failure_cause`."""
        return outcome.CAUSES[outcome.failure_cause(self.progress, self._asked, self._moment)]

    def phase(self) -> str:
        """What is going on: approach, grasp, carry, place, wrong_stone or release."""
        world = self.world
        now = outcome.phase(self._asked, world.gripper, world.stones.T, self._moment)
        return outcome.PHASES[now]

    def close(self) -> None:
        """Free the GL context, if there is one."""
        if self._gl:
            self._gl.close()

    def _begin(self, episode: Episode, stones: tuple[str, ...]) -> None:
        self.episode = episode
        self.physics = Physics(episode.scene, stones)
        self._shown: UInt8[np.ndarray, "cameras size size 3"] | None = None
        self._appearance = jax.device_put(board_appearance(episode.scene, stones))

    @property
    def _asked(self) -> outcome.Task:
        return outcome.Task(self.goal, self.target)

    def _measure(self) -> None:
        self.world = self.physics.world()
        self._moment = self.world.moment(self._asked, self.tolerance)

    def _observe(self) -> dict[str, Any]:
        world = self.world
        state = np.array([*world.gripper, world.opening, world.command], np.float32)
        if self._shown is None or int(self.progress.steps) % self.picture_every == 0:
            self._shown = self.pictures()
        images = dict(zip(IMAGE_KEYS, self._shown, strict=True))
        return {**images, STATE_KEY: state, PROMPT_KEY: self.episode.prompt}

    def _info(self, truncated: bool = False) -> dict[str, Any]:
        world, goal, steps = self.world, self.goal, int(self.progress.steps)
        return {
            "success": self.is_success(),
            "failure_cause": self.failure_cause() if truncated else None,
            "placement_error_m": float(np.linalg.norm(world.stones[goal, :2] - self.target)),
            "step": steps,
            "steps_left": self.max_steps - steps,
            "time_s": steps / s.CONTROL_HZ,
            "time_limit_s": self.max_steps / s.CONTROL_HZ,
            "phase": self.phase(),
            "held": world.held,
            "task": self.episode.task,
            "goal_stone": goal,
            "goal_xy": world.stones[goal, :2].copy(),
            "target_xy": self.target,
            "other_xy": world.stones[1 - goal, :2].copy(),
            "world": world,
        }
