"""`Host`: the environments of some slots of the batch, wherever they live, and what it answers.

A request executes several actions, and pictures between them stay with the host unless a video is
recorded: one round trip and one observation for each inference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from mistjax.models.transforms import flatten
from mistjax.policies.protocol import RawObs
from mistjax.rollouts.recorder import is_scalar
from mistjax.rollouts.trace import Json

MakeEnv = Callable[[], gym.Env]
Request = tuple[str, tuple]  # a method of `Host` and its arguments


@dataclasses.dataclass(frozen=True)
class Moment:
    """An environment after `reset` or `step`. `raw` is flat; `info` holds its scalars and its
    `task` only.
    """

    raw: RawObs
    info: Mapping[str, Any]
    ended: bool = False


@dataclasses.dataclass(frozen=True)
class Reply:
    """What became of a request.

    Attributes:
        moments: the start of an episode, or one moment for each executed action.
        error: the traceback, when the environment raised; what killed the worker, when it died of
            this request.
        lost: the worker died, and with it the episode.
    """

    moments: tuple[Moment, ...] = ()
    error: str | None = None
    lost: bool = False


class Host:
    """Environments of some slots. Only `make` raises; a crash elsewhere is part of the reply."""

    def __init__(self, make_env: MakeEnv):
        self._make_env = make_env
        self._envs: dict[int, gym.Env] = {}
        self._pictures: dict[int, bool] = {}

    def make(self, slot: int) -> tuple[str, float]:
        """Makes the environment of a slot; returns its gymnasium id and frames per second."""
        env = self._envs[slot] = self._make_env()
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        return name, float(env.metadata.get("render_fps", 10.0))

    def reset(self, slot: int, seed: int, options: dict[str, Json], pictures: bool) -> Reply:
        """Starts an episode. `pictures`: send those between two inferences too."""
        self._pictures[slot] = pictures
        try:
            if slot not in self._envs:
                self.make(slot)
            raw, info = self._envs[slot].reset(seed=seed, options=options)
            return Reply((Moment(flatten(raw), _plain(info)),))
        except Exception:
            return self._crash(slot, ())

    def act(self, slot: int, actions: Sequence[np.ndarray]) -> Reply:
        """Executes actions one after the other, up to the end of the episode."""
        moments: list[Moment] = []
        try:
            for left, action in zip(range(len(actions), 0, -1), actions, strict=True):
                raw, _, terminated, truncated, info = self._envs[slot].step(action)
                ended = bool(terminated or truncated)
                kept = left == 1 or ended or self._pictures[slot]
                raw = flatten(raw) if kept else _vectors(flatten(raw))
                moments.append(Moment(raw, _plain(info), ended))
                if ended:
                    break
        except Exception:
            return self._crash(slot, moments)
        return Reply(tuple(moments))

    def close(self) -> None:
        for env in self._envs.values():
            with contextlib.suppress(Exception):
                env.close()
        self._envs.clear()

    def _crash(self, slot: int, moments: Sequence[Moment]) -> Reply:
        """The exception being handled as a reply; the slot gets a new environment at its reset."""
        error = traceback.format_exc()
        if (env := self._envs.pop(slot, None)) is not None:
            with contextlib.suppress(Exception):
                env.close()
        return Reply(tuple(moments), error)


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in info.items() if name == "task" or is_scalar(value)}


def _vectors(raw: RawObs) -> RawObs:
    return {name: v for name, v in raw.items() if isinstance(v, str) or np.ndim(v) < 2}
