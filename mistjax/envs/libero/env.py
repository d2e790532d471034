"""`mistjax/Libero-v0`: the 130 tasks of LIBERO under openpi's observation keys.

Action: seven values in [-1, 1] at 20 Hz: change of position (0.05 m per unit) and rotation (0.5 rad
per unit) of the gripper, then the gripper (positive closes). Observation: two pictures, the state
(grip position in metres, rotation as axis times angle, both finger joints) and the prompt. Success:
every fact of the task's goal. The episode ends there, or is truncated after `max_steps` or where
the physics breaks; in the last case `info["error"]` says so, and `info["success"]` means nothing.

A seed names an episode of the usual evaluation: seeds 0 to 49 are the fixed start states of task 0,
50 to 99 those of task 1, and so on. With `task_id` given, seed s is that task's start s modulo
their number.

Cost: see `simulator` and `cameras`. Pictures take most of it; `picture_every=n` draws them at
steps 0, n, 2n, ... only, where an inference looks at them, and repeats them in between.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, SupportsIndex

import gymnasium as gym
import numpy as np
from jaxtyping import Int32, Shaped, UInt8
from numpy.typing import ArrayLike

from mistjax.envs.libero import suites
from mistjax.envs.libero.cameras import Cameras
from mistjax.envs.libero.changes import Change
from mistjax.envs.libero.episodes import check_task, choose_episode, start_episode
from mistjax.envs.libero.installation import load
from mistjax.envs.libero.perturbations import check
from mistjax.envs.libero.simulator import SimulationError, Simulator
from mistjax.envs.libero.suites import SETTLE_STEPS, Task

IMAGE_KEYS = ("observation/image", "observation/wrist_image")
CAMERAS = ("agentview", "robot0_eye_in_hand")
STATE_KEY, PROMPT_KEY = "observation/state", "prompt"

TYPOGRAPHIC = (0x2018, 0x2019, 0x201C, 0x201D, 0x2013, 0x2014)
"""Quotation marks and dashes in published instructions."""


class LiberoEnv(gym.Env):
    """See the module. The same seed and options give the same episode bit for bit."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    check_perturbation = staticmethod(check)

    def __init__(
        self,
        suite: str | Sequence[Task] = "libero_object",
        task_id: int | None = None,
        *,
        image_size: int = 256,
        convention: Literal["openpi", "upright"] = "openpi",
        pictures: bool = True,
        picture_every: int = 1,
        reflections: bool = True,
        max_steps: int | None = None,
        settle_steps: int = SETTLE_STEPS,
        prompts: str | None = None,
        assets: str | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Make the environment; scenes are built at the first reset of their task.

        Args:
            suite: the name of an installed suite, or tasks such as `suites.published` returns.
            task_id: which task; None lets the seed choose.
            image_size: pixels per side of both pictures.
            convention: "upright", or "openpi": mirrored left to right, as openpi and OpenVLA were
                trained (they turn the camera's upside-down frame by half a circle).
            pictures: False leaves them out of the observation and needs no OpenGL.
            picture_every: draw new pictures every n steps.
            reflections: draw reflections as LIBERO does; without them it takes half as long.
            max_steps: steps before truncation; None takes the suite's.
            settle_steps: steps at rest before the episode begins, while things fall into place.
            prompts: take instructions from the file's "name" or its "text"; None takes the suite's
                own.
            assets: asset folder, see `installation.find_assets`.
            render_mode: gymnasium's; "rgb_array" makes `render()` return the agent's view.

        Raises:
            ImportError: LIBERO is not installed.
            FileNotFoundError: its assets are not found.
            ValueError: an unknown suite, task or convention.
        """
        if convention not in ("openpi", "upright"):
            raise ValueError(f"convention is {convention!r}, expected 'openpi' or 'upright'")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}, expected None or 'rgb_array'")
        counts = {"image_size": image_size, "picture_every": picture_every, "max_steps": max_steps}
        if wrong := {name: n for name, n in counts.items() if n is not None and n < 1}:
            raise ValueError(f"{wrong}: expected at least 1")
        if settle_steps < 0:
            raise ValueError(f"settle_steps is {settle_steps}, expected at least 0")
        self._libero = load(assets)
        if prompts not in (None, "name", "text"):
            raise ValueError(f"prompts is {prompts!r}, expected 'name' or 'text'")
        self.tasks = suites.suite(suite) if isinstance(suite, str) else tuple(suite)
        if prompts is not None:
            self.tasks = tuple(task.named_by(prompts) for task in self.tasks)
        self.task_id = None if task_id is None else check_task(self.tasks, task_id)
        self.image_size, self.convention, self.reflections = image_size, convention, reflections
        self.picture_every, self.settle_steps = picture_every, settle_steps
        self._max_steps, self.render_mode = max_steps, render_mode
        self._has_pictures = pictures
        self._scene: Any = None
        self._simulator: Simulator | None = None
        self._cameras: Any = None
        self.action_space = gym.spaces.Box(-1.0, 1.0, (7,), np.float32)
        spaces: dict[str, gym.Space] = {
            STATE_KEY: gym.spaces.Box(-np.inf, np.inf, (8,), np.float32),
            PROMPT_KEY: gym.spaces.Text(
                500, charset=frozenset(map(chr, (*range(32, 127), *TYPOGRAPHIC)))
            ),
        }
        if pictures:
            picture = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
            spaces |= dict.fromkeys(IMAGE_KEYS, picture)
        self.observation_space = gym.spaces.Dict(spaces)

    def reset(
        self, *, seed: SupportsIndex | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: chooses task and start state as the module says, and draws what is not fixed:
                the places of fixtures, and starts of tasks without start states.
            options: "task_id" and "init_state" in place of the seed's choice, and "perturbation"
                (name -> kind or strength, see `perturbations`). A perturbation draws from its own
                stream, and one that changes the scene draws the start from the changed regions.

        Raises:
            ValueError: an unknown option, task, start state or perturbation.
            SimulationError: no stable start was drawn.
        """
        seed = None if seed is None else operator.index(seed)
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        options = {"task_id": self.task_id, **(options or {})}
        check(options.get("perturbation", {}))
        self.episode, start = choose_episode(self.tasks, seed, options)
        self._build(self.episode.change)
        start_episode(self.simulator, seed, start, self.settle_steps)
        self.steps, self._error, self._held = 0, None, frozenset[str]()
        return self.observe(), self._info()

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one 0.05 s step; values outside [-1, 1] are cut. The reward is 1 on success.

        Raises:
            ValueError: the action has another shape, or is not finite.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action}; expected seven finite values in [-1, 1]")
        try:
            self.simulator.step(np.clip(action, -1.0, 1.0))
            if held := self.simulator.held():
                self._held |= {held}
        except SimulationError as error:
            self._error = str(error)
        self.steps += 1
        success = self._error is None and self.simulator.success()
        truncated = not success and (self._error is not None or self.steps >= self.max_steps)
        due = self.steps % self.picture_every == 0
        seen = self.observe() if due else self._observation()
        return seen, float(success), success, truncated, self._info()

    def render(self) -> UInt8[np.ndarray, "size size 3"]:  # type: ignore[override]
        """The agent's view, upright."""
        return self._views()[0]

    def segmentation(self) -> Int32[np.ndarray, "cameras size size"]:
        """What each pixel of both pictures shows, by the ids of `solid_ids`."""
        geoms = self._cameras_of_scene().segmentation(self.simulator.seen)
        return self._as_asked(np.where(geoms < 0, 0, self.simulator.appearances.of_geom[geoms]))

    def solid_ids(self) -> dict[str, int]:
        """Name -> the id that `segmentation` gives its pixels: the arena, the robot, and every
        object and fixture of this scene."""
        return dict(self.simulator.appearances.ids)

    @property
    def simulator(self) -> Simulator:
        """The scene of this episode, with everything's true position."""
        if self._simulator is None:
            raise RuntimeError("there is no scene before the first reset, nor after close.")
        return self._simulator

    @property
    def max_steps(self) -> int:
        """Steps before this episode is truncated."""
        return self.episode.task.max_steps if self._max_steps is None else self._max_steps

    def close(self) -> None:
        """Free the scene and its OpenGL context."""
        if self._cameras is not None:
            self._cameras.close()
        if self._simulator is not None:
            self._simulator.close()
        self._scene = self._simulator = self._cameras = None

    def failure_cause(self) -> str:
        """Why the episode failed if it ended now.

        `never_grasped`: no object was held. `wrong_object`: only others than the one asked for.
        `let_go`: an object that was asked for was held, and no longer is. `timeout`: one still is.
        `not_done`: the goal moves no object.
        """
        problem = self.episode.change.problem
        asked = {fact[1] for fact in problem.goal} & dict(problem.objects).keys()
        if not asked:
            return "not_done"
        if not asked & self._held:
            return "wrong_object" if self._held else "never_grasped"
        return "timeout" if self.simulator.held() in asked else "let_go"

    def _build(self, change: Change) -> None:
        """Builds the scene of a change, unless it is built already."""
        scene = (dataclasses.replace(change.problem, language=""), change.style)
        if self._scene != scene:
            self.close()
            self._simulator = Simulator(self._libero, change.problem, change.style)
            self._scene = scene
        self.simulator.appearances.tint(change.tints)

    def _cameras_of_scene(self):
        if self._cameras is None:
            self._cameras = Cameras(
                self.simulator.model, CAMERAS, self.image_size, self.reflections
            )
        return self._cameras

    def _views(self) -> UInt8[np.ndarray, "cameras size size 3"]:
        return self._cameras_of_scene().pictures(self.simulator.seen)

    def _as_asked(self, views: Shaped[np.ndarray, "cameras size size *c"]):
        return views if self.convention == "upright" else views[:, :, ::-1]

    def observe(self) -> dict[str, Any]:
        """The current observation, with fresh pictures whatever `picture_every` says."""
        if self._has_pictures:
            self._pictures = self._as_asked(self._views())
        return self._observation()

    def _observation(self) -> dict[str, Any]:
        state = self.simulator.robot_state().astype(np.float32)
        pictures = zip(IMAGE_KEYS, self._pictures, strict=True) if self._has_pictures else ()
        return {**dict(pictures), STATE_KEY: state, PROMPT_KEY: self.episode.change.prompt}

    def _info(self) -> dict[str, Any]:
        episode = self.episode
        success = self._error is None and self.simulator.success()
        over = self.steps >= self.max_steps and not success and self._error is None
        return {
            "success": success,
            "error": self._error,
            "failure_cause": self.failure_cause() if over else None,
            "step": self.steps,
            "steps_left": self.max_steps - self.steps,
            "suite": episode.task.suite,
            "task": episode.task.name,
            "task_id": episode.task_id,
            "init_state": episode.init_state,
        }
