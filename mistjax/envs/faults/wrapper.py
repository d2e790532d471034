"""`Faulty`: an environment in which something goes wrong in the middle of an episode."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import jax
import numpy as np

from mistjax.envs.board.faults import FAULTS as ACTIONS
from mistjax.envs.faults import inputs
from mistjax.envs.faults.battery import CAMERAS, FAULTS, Injection, Mixture
from mistjax.envs.faults.words import Choices, rewrite

PUSH, PUSH_STEPS = 0.03, 4
"""Metres, and control steps."""
ACTION_STREAM = 0xAC7
"""Names the random stream of faulty actions."""


@dataclasses.dataclass(frozen=True)
class Rig:
    """Where an environment's inputs are, and how its world is changed.

    Attributes:
        cameras: camera of the battery -> key of the observation.
        state: key of the state, whose first three entries are a position in metres.
        prompt: key of the instruction.
        opening: entry of the state that is a finger gap in metres.
        metres: how far one unit of an action moves the hand.
        choices: prompt -> the words that matter, see `words.rewrite`.
        change_scene: (environment, kind, strength, seed) -> a new observation; None where scenes
            cannot change in the middle of an episode.
        gripper_opens: sign of a gripper action that opens; None where actuators have no faults.
    """

    cameras: Mapping[str, str]
    state: str
    prompt: str
    opening: int
    metres: float
    choices: Callable[[str], Choices]
    change_scene: Callable[[gym.Env, str, float, int], dict[str, Any]] | None = None
    gripper_opens: int | None = None

    def check(self, mixture: Mixture) -> None:
        """ValueError for a fault that the environment cannot have."""
        for part in mixture.parts:
            where = FAULTS[part.name][0] if part.name else None
            if where == "scene" and self.change_scene is None:
                raise ValueError(
                    f"{part.name}: scenes of this environment do not change in mid-episode; "
                    "give a perturbation instead, which holds from the start."
                )
            if where == "action" and self.gripper_opens is None:
                raise ValueError(f"{part.name}: only the board has faults of its actuators.")


@functools.partial(jax.jit, static_argnames=("kind", "picture"))
def _see(kind, memory, now, strength, key, active, picture):
    delivered, memory = inputs.see(kind, memory, now, strength, key, active)
    return (inputs.as_pixels(delivered).astype(np.uint8) if picture else delivered), memory


@jax.jit
def noisy_picture(picture, seed, step, camera) -> jax.Array:
    """A picture as the sensor shows it at a control step of an episode."""
    key = jax.random.fold_in(jax.random.fold_in(inputs.key_of(seed), step), camera)
    return inputs.as_pixels(inputs.picture_noise(picture, key)).astype(np.uint8)


@functools.partial(jax.jit, static_argnames="opening")
def noisy_state(state, seed, step, opening) -> jax.Array:
    """A state as the sensor shows it at a control step of an episode."""
    key = jax.random.fold_in(jax.random.fold_in(inputs.key_of(seed), step), 99)
    return inputs.state_noise(state, key, opening)


class Faulty(gym.Wrapper):
    """An environment under a mixture of faults, one drawn for each seed.

    Pictures and states go wrong at the policy's looks, every `look_every` steps from the start;
    a frozen camera shows the last look before the onset. Sensor noise comes before the fault, as
    in a sensor; pictures between two looks have none. `info` holds `fault` (None for none),
    `fault_input`, `fault_strength` and `fault_onset` from the start of the episode.

    Cost of a step: some 0.1 ms while a fault is active; noise on two 64-pixel pictures, 0.6 ms
    per look.
    """

    def __init__(self, env: gym.Env, rig: Rig, mixture: Mixture, look_every: int = 4) -> None:
        """ValueError for a mixture that the environment cannot have."""
        super().__init__(env)
        rig.check(mixture)
        self.rig, self.mixture, self.look_every = rig, mixture, look_every

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; ValueError without a seed, which decides the fault."""
        if seed is None:
            raise ValueError("reset(seed=...): the seed decides the episode's fault; give one.")
        observation, info = self.env.reset(seed=seed, options=options)
        self._seed, self._step = seed, 0
        self._key = inputs.key_of(seed)
        self.injection = self.mixture.draw(seed)
        self._memory: inputs.Memory | None = None
        self._asked: list[np.ndarray] = []
        self._rng = np.random.default_rng([seed, ACTION_STREAM])
        if self._active("scene"):
            observation = self._change_scene()
        return self._deliver(observation), self._info(info)

    def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step; what the actuators do, and what the policy sees, may be wrong."""
        action = np.asarray(action, np.float64)
        self._asked.append(action)
        observation, reward, terminated, truncated, info = self.env.step(self._executed(action))
        self._step += 1
        fault = self.injection
        if fault is not None and fault.input == "scene" and fault.onset == self._step:
            observation = self._change_scene()
        return self._deliver(observation), reward, terminated, truncated, self._info(info)

    @property
    def _repeats_pictures(self) -> bool:
        """Whether the environment draws pictures only where the policy looks."""
        return getattr(self.env.unwrapped, "picture_every", 1) == self.look_every

    def _active(self, *where: str) -> bool:
        fault = self.injection
        return fault is not None and fault.input in where and self._step >= fault.onset

    def _executed(self, action: np.ndarray) -> np.ndarray:
        fault = self.injection
        if fault is None or not self._active("action", "push"):
            return action
        if fault.input == "action":
            return ACTIONS[fault.kind](np.stack(self._asked), fault.strength, self._rng)
        if self._step >= fault.onset + PUSH_STEPS:
            return action
        axis, sign = divmod(self._seed % 4, 2)  # along x or y, either way
        push = PUSH * fault.strength / PUSH_STEPS / self.rig.metres
        pushed = np.clip(action, -1, 1)
        pushed[axis] += push * (1 if sign else -1)
        return pushed

    def _change_scene(self) -> dict[str, Any]:
        fault, change = self.injection, self.rig.change_scene
        assert fault is not None and change is not None  # see `Rig.check`
        return change(self.env.unwrapped, fault.kind, fault.strength, self._seed)

    def _info(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, **Injection.info(self.injection)}

    def _deliver(self, observation: dict[str, Any]) -> dict[str, Any]:
        """What reaches the policy of what the sensors show."""
        rig, fault, look = self.rig, self.injection, self._step % self.look_every == 0
        seen = dict(observation)
        if self.mixture.sensor_noise:
            if look:
                for number, key in enumerate(rig.cameras.values()):
                    seen[key] = np.asarray(noisy_picture(seen[key], self._seed, self._step, number))
            noisy = noisy_state(seen[rig.state], self._seed, self._step, rig.opening)
            seen[rig.state] = np.asarray(noisy, np.float32)
        if fault is None:
            return seen
        if fault.input == "instruction":
            if self._active("instruction"):
                prompt = seen[rig.prompt]
                choices = rig.choices(prompt)
                seen[rig.prompt] = rewrite(fault.kind, prompt, choices, fault.strength, self._seed)
            return seen
        kinds = inputs.STATES if fault.input == "state" else inputs.PICTURES
        if fault.kind not in kinds:
            return seen
        key = rig.state if fault.input == "state" else rig.cameras[fault.input]
        if not look and fault.input in CAMERAS and self._repeats_pictures:
            return {**seen, key: self._last_look}
        if self._memory is None:
            self._memory = inputs.remember(seen[key])
        delivered, memory = _see(
            kinds[fault.kind],
            self._memory,
            seen[key],
            fault.strength,
            self._key,
            self._active(fault.input),
            fault.input != "state",
        )
        seen[key] = np.asarray(delivered)
        if look:
            self._memory, self._last_look = memory, seen[key]
        return seen
