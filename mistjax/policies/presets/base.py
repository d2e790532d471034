"""`RobotPreset`: how a robot's raw observations and actions map to model inputs and outputs.

The rules are applied in openpi's order. In: cameras and state are picked by key, the state is put
into the model's units, then normalised. Out: actions are un-normalised, made absolute by adding the
state (in the model's units), then put into the robot's units and kept inside its bounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.normalize import AnyArray
from mistjax.models.transforms import numbers, words


@runtime_checkable
class RobotUnits(Protocol):
    """How a robot's units differ from those that the model was trained in."""

    def to_model_state(self, state: Float[np.ndarray, "*b s"]) -> Float[np.ndarray, "*b s"]: ...

    def to_robot_actions(self, actions: Float[np.ndarray, "*b a"]) -> Float[np.ndarray, "*b a"]: ...


@dataclasses.dataclass(frozen=True)
class Fallback:
    """The action that holds a robot still, in its own units: what goes out where a policy has none.

    Attributes:
        action: of each action dimension; 0 where actions are velocities or changes of position.
        from_state: (action dimension, entry of the raw state) of what is commanded as a position
            and stays as it was: a gripper, joints. An entry that is not finite gives `action`'s.
    """

    action: tuple[float, ...]
    from_state: tuple[tuple[int, int], ...] = ()

    def fits(self, state_dim: int, action_dim: int) -> bool:
        """Whether it is an action of such a robot, and reads nothing but its state."""
        return (
            len(self.action) == action_dim
            and bool(np.isfinite(self.action).all())
            and all(0 <= a < action_dim and 0 <= s < state_dim for a, s in self.from_state)
        )

    def __call__(self, state: Float[AnyArray, "*b s"]) -> Float[AnyArray, "*b a"]:
        """The action for a raw state; NumPy and JAX arrays alike, inside jit too."""
        xp = jnp if isinstance(state, jax.Array) else np
        columns = [xp.full(state.shape[:-1], value, xp.float32) for value in self.action]
        for dimension, entry in self.from_state:
            read = state[..., entry].astype(xp.float32)
            columns[dimension] = xp.where(xp.isfinite(read), read, columns[dimension])
        return xp.stack(columns, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class RobotPreset:
    """What a policy needs to know of a robot; compared by identity, as a static argument of jit.

    Attributes:
        name: the preset's name.
        cameras: model camera -> raw observation key, or None for a camera that the robot lacks
            (zeros, masked out).
        state_key: raw observation key of the state, or several whose vectors are joined.
        state_dim: width of the raw state.
        action_names: what each action dimension means.
        action_low, action_high: bounds in the robot's units.
        gripper_index: which action dimension is the gripper, or None (none, or several).
        execute_steps: actions of a chunk to execute before the next inference.
        normalizer: `zscore` (pi0) or `quantile` (pi0.5, pi0-FAST).
        state_in_prompt: pi0.5 writes the state's bins into the prompt.
        delta: which leading action dimensions the model predicts relative to the state; () for
            none.
        units: the robot's units, where they are not the model's.
        asset: the asset id of the statistics in a checkpoint; None is the preset's name.
        model: configuration of this preset's published checkpoint; None for any.
        default_prompt: what to do when an observation has no prompt.
        env_options: simulator options under which a policy sees what it was trained on.
        fallback: the action that holds the robot still; None where nobody has said which.
    """

    name: str
    cameras: Mapping[str, str | None]
    state_key: str | tuple[str, ...]
    state_dim: int
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    gripper_index: int | None
    execute_steps: int
    normalizer: Literal["zscore", "quantile"] = "zscore"
    state_in_prompt: bool = False
    delta: tuple[bool, ...] = ()
    units: RobotUnits | None = None
    asset: str | None = None
    model: Pi0Config | FastConfig | None = None
    default_prompt: str | None = None
    env_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fallback: Fallback | None = None

    def __post_init__(self):
        width, low, high = len(self.action_names), self.action_low, self.action_high
        right = {
            "action_low or action_high": len(low) == len(high) == width
            and bool(np.isfinite([*low, *high]).all() and np.less(low, high).all()),
            "gripper_index": self.gripper_index is None or 0 <= self.gripper_index < width,
            "delta": len(self.delta) <= min(width, self.state_dim),
            "state_dim": self.state_dim >= 1,
            "execute_steps": self.execute_steps >= 1,
            "normalizer": self.normalizer in ("zscore", "quantile"),
            "fallback": self.fallback is None or self.fallback.fits(self.state_dim, width),
        }
        if wrong := [name for name, fits in right.items() if not fits]:
            raise ValueError(
                f"preset {self.name!r} has a {wrong[0]} that does not fit a robot with "
                f"{self.state_dim} numbers of state and {width} of action, at least one each."
            )
        if self.default_prompt is not None:
            words(self.default_prompt, "default_prompt")

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def asset_id(self) -> str:
        return self.asset or self.name

    def behaviour(self, image_keys: Sequence[str]) -> dict[str, Any]:
        """All fields that change how a model with these cameras acts, for fingerprints."""
        names = {"name", "asset", "model", "env_options"}
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in names
        }
        return {**fields, "cameras": {key: self.cameras.get(key) for key in image_keys}}

    def state(self, raw: Mapping[str, Any]) -> Float[np.ndarray, " s"]:
        """The state of a raw observation in the model's units.

        Raises:
            ValueError: as `raw_state`, or a number that is not finite.
        """
        state = self.raw_state(raw)
        if not np.isfinite(state).all():
            wrong = ", ".join(f"[{i}] {state[i]}" for i in np.flatnonzero(~np.isfinite(state)))
            raise ValueError(
                f"the state ({self._state_name}) holds {wrong}: is a sensor dead? A policy cannot "
                "act on that."
            )
        return state if self.units is None else self.units.to_model_state(state)

    def raw_state(self, raw: Mapping[str, Any]) -> Float[np.ndarray, " s"]:
        """The state of a raw observation in the robot's units, finite or not.

        Raises:
            ValueError: a key is missing or holds no vector, or the state has another width.
        """
        keys = (self.state_key,) if isinstance(self.state_key, str) else self.state_key
        if missing := [key for key in keys if key not in raw]:
            raise ValueError(
                f"preset {self.name!r} reads the state from {missing}, which the "
                f"observation lacks; it has {sorted(raw)}."
            )
        state = np.concatenate([numbers(raw[key], key) for key in keys])
        if len(state) != self.state_dim:
            raise ValueError(
                f"{self._state_name} has {len(state)} entries; preset {self.name!r} has "
                f"{self.state_dim}."
            )
        return state

    @property
    def _state_name(self) -> str:
        return self.state_key if isinstance(self.state_key, str) else " + ".join(self.state_key)

    def bounded(
        self,
        actions: Float[np.ndarray, "b h a"],
        broken: Bool[np.ndarray, " b"],
        raw: Sequence[Mapping[str, Any]],
    ) -> Float[np.ndarray, "b h a"]:
        """Actions in the robot's units as they may go out: finite, and inside the bounds.

        Args:
            actions: chunks in the robot's units.
            broken: batch elements whose chunk is not an action; a chunk that is not finite counts
                as broken too. The robot holds still for the whole chunk there, see `Fallback`.
            raw: the flat raw observations.

        Raises:
            ValueError: a batch element is broken, and the preset has no fallback.
        """
        broken = broken | ~np.isfinite(actions).all(axis=(1, 2))
        if not broken.any():
            return np.clip(actions, self.action_low, self.action_high).astype(np.float32)
        if self.fallback is None:
            raise ValueError(
                f"chunk {np.flatnonzero(broken)[0]} is not an action, and preset "
                f"{self.name!r} does not say what holds the robot still: give RobotPreset a "
                "`fallback`."
            )
        return np.asarray(self.held(actions, broken, np.stack([self.raw_state(r) for r in raw])))

    def held(
        self,
        actions: Float[AnyArray, "b h a"],
        broken: Bool[AnyArray, " b"],
        state: Float[AnyArray, "b s"],
    ) -> Float[AnyArray, "b h a"]:
        """`bounded` on arrays, NumPy's or JAX's, for a preset with a fallback.

        Args:
            actions: as `bounded`.
            broken: batch elements that hold still.
            state: in the robot's units.
        """
        assert self.fallback is not None
        xp = jnp if isinstance(actions, jax.Array) else np
        still = self.fallback(state)[:, None]
        actions = xp.where(broken[:, None, None], still, actions)
        low, high = (xp.array(ends)[None, None] for ends in (self.action_low, self.action_high))
        return xp.clip(actions, low, high).astype(xp.float32)

    def still(self, state: Float[AnyArray, "b s"]) -> Float[AnyArray, "b a"]:
        """The action that holds the robot still in a state of its own units, within the bounds; for
        a preset with a fallback. NumPy and JAX arrays alike.
        """
        assert self.fallback is not None
        xp = jnp if isinstance(state, jax.Array) else np
        low, high = xp.array(self.action_low), xp.array(self.action_high)
        return xp.clip(self.fallback(state), low, high).astype(xp.float32)

    def prompt(self, raw: Mapping[str, Any]) -> str:
        """What an observation asks for, else the default.

        Raises:
            ValueError: no prompt, and the preset has no default; or one that is not text.
        """
        said = raw.get("prompt")
        said = self.default_prompt if said is None else said
        if said is None:
            raise ValueError(f"the observation has no 'prompt'; it has {sorted(raw)}.")
        return words(said)
