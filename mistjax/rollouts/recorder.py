"""`Recorder`: collects what happens in one episode and turns it into a `Trace`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mistjax.hooks.sites import Tap
from mistjax.policies.protocol import PolicySpec, RawObs, Sample
from mistjax.rollouts.trace import Json, Trace, to_json

MONITOR: Mapping[str, Any] = {
    "score": np.float32,
    "threshold": np.float32,
    "alarm": bool,
    "edited": bool,
    "input_score": np.float32,
    "input_threshold": np.float32,
    "unsound": bool,
    "named": np.int32,
}
"""What is kept of every monitor, and how."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """What to keep of every inference, besides the monitor's report."""

    taps: tuple[Tap, ...] = ()
    aux: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Inference:
    """The arrays of one batched inference on the host, batch axis first."""

    chunks: np.ndarray
    monitor: Mapping[str, np.ndarray]
    features: Mapping[str, np.ndarray]
    aux: Mapping[str, np.ndarray]
    milliseconds: float

    @classmethod
    def read(
        cls, recording: Recording, sample: Sample, chunks: np.ndarray, milliseconds: float
    ) -> Inference:
        """Picks what is recorded out of a sample.

        Raises:
            ValueError: the policy did not return a tap or an output that was asked for.
        """
        batch = len(chunks)
        missing = [str(tap) for tap in recording.taps if str(tap) not in sample.taps]
        missing += [name for name in recording.aux if name not in sample.aux]
        if missing:
            raise ValueError(
                f"the policy returned no {missing}: its sample has taps {sorted(sample.taps)} "
                f"and aux {sorted(sample.aux)}."
            )
        return cls(
            chunks=np.asarray(chunks, np.float32),
            monitor={name: np.asarray(sample.aux[name]) for name in MONITOR if name in sample.aux},
            features={
                str(tap): _feature(tap, sample.taps[str(tap)], batch) for tap in recording.taps
            },
            aux={name: _host(sample.aux[name]) for name in recording.aux},
            milliseconds=milliseconds,
        )


def _feature(tap: Tap, value: jax.Array | np.ndarray, batch: int) -> np.ndarray:
    """A tap's value with the batch axis in front.

    Raises:
        ValueError: it is not the batch's.
    """
    values = _host(tap.batch_first(value))
    if len(values) != batch:
        raise ValueError(f"tap '{tap}' came back with {len(values)} elements: expected {batch}.")
    return values


class Recorder:
    """Collects one episode."""

    def __init__(self, seed: int, raw: RawObs, info: Mapping[str, Any], cameras: tuple[str, ...]):
        """`cameras` are the keys of the raw observation to keep pictures of; () for none."""
        self.seed = seed
        self._cameras = cameras
        self._prompt = str(raw["prompt"])
        self._prompts: list[str] = []
        task = info.get("task", self._prompt)
        self._task = task if isinstance(task, str) else to_json(task)
        self._info: Mapping[str, Any] = info
        self._state: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._inferences: list[tuple[int, dict[str, np.ndarray]]] = []
        self._frames = [_side_by_side(raw, cameras)] if cameras else []

    @property
    def steps(self) -> int:
        """Env steps so far."""
        return len(self._actions)

    @property
    def inferences(self) -> int:
        """Inferences so far."""
        return len(self._inferences)

    def inference(self, batch: Inference, element: int, raw: RawObs) -> np.ndarray:
        """Adds one element of an inference; returns its chunk [H,A]."""
        values = {"chunks": batch.chunks[element], "timings_ms": np.float32(batch.milliseconds)}
        values |= {name: value[element] for name, value in batch.monitor.items()}
        values |= {f"features/{name}": value[element] for name, value in batch.features.items()}
        values |= {f"aux/{name}": value[element] for name, value in batch.aux.items()}
        values |= {f"images/{name}": np.array(raw[name]) for name in self._cameras}
        if self._inferences:
            _check_alike(values, self._inferences[0][1])
        self._inferences.append((self.steps, values))
        self._prompts.append(str(raw.get("prompt", self._prompt)))
        return batch.chunks[element]

    def step(
        self, state: np.ndarray, action: np.ndarray, raw: RawObs, info: Mapping[str, Any]
    ) -> None:
        """Adds an action executed in `state`, and what it led to.

        Raises:
            ValueError: the state or a picture has a different size than before.
        """
        if self._state:
            _check_alike({"state": state}, {"state": self._state[0]})
        if self._cameras:
            frame = _side_by_side(raw, self._cameras)
            _check_alike({"the pictures": frame}, {"the pictures": self._frames[0]})
            self._frames.append(frame)
        self._state.append(state)
        self._actions.append(np.array(action, np.float32))
        self._info = info

    def end(self, info: Mapping[str, Any]) -> None:
        """Says how the episode ended, where that became known after its last step."""
        self._info = info

    def trace(
        self, env_id: str, spec: PolicySpec, perturbation: Mapping[str, Json], error: str | None
    ) -> Trace:
        """The finished episode.

        Raises:
            ValueError: the environment does not say whether the episode succeeded.
        """
        if error is None and "success" not in self._info:
            raise ValueError(
                f"{env_id} ended an episode without info['success'] (it has {sorted(self._info)}): "
                "rollouts need an environment that says whether the task was done."
            )
        names = list(self._inferences[0][1]) if self._inferences else []
        tensors = {name: np.stack([v[name] for _, v in self._inferences]) for name in names}
        horizon, width = spec.action_horizon, spec.action_dim
        tensors.setdefault("chunks", np.zeros((0, horizon, width), np.float32))
        tensors.setdefault("timings_ms", np.zeros(0, np.float32))
        for name, kind in MONITOR.items():
            if name in tensors:
                tensors[name] = tensors[name].astype(kind)
        tensors["inference_step"] = np.array([step for step, _ in self._inferences], np.int32)
        tensors["state"] = np.stack(self._state) if self._state else np.zeros((0, 0), np.float32)
        none = np.zeros((0, width), np.float32)
        tensors["actions"] = np.stack(self._actions) if self._actions else none
        cause = self._info.get("failure_cause")
        row = {
            "seed": self.seed,
            "env_id": env_id,
            "task": self._task,
            "prompt": self._prompt,
            "policy": spec.name,
            "policy_fingerprint": spec.fingerprint,
            "success": None if error is not None else bool(self._info["success"]),
            "failure_cause": None if error is not None or cause is None else str(cause),
            "error": error,
            "perturbation": dict(perturbation),
            "info": {
                **{name: v for name, v in self._info.items() if is_scalar(v)},
                **_first_named(tensors, spec.inputs, self._prompts),
            },
        }
        trace = Trace.from_parts(row, tensors)
        return dataclasses.replace(trace, frames=np.stack(self._frames)) if self._frames else trace


def _check_alike(values: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray]) -> None:
    for name, value in values.items():
        if value.shape != first[name].shape:
            raise ValueError(
                f"{name} has shape {value.shape}, and {first[name].shape} earlier in the episode."
            )


def _first_named(
    tensors: Mapping[str, np.ndarray], inputs: tuple[str, ...], prompts: Sequence[str]
) -> dict[str, Json]:
    """The input that was named first, None for none of them, at which step, and the instruction
    there; {} for nothing.
    """
    named = tensors.get("named", np.zeros(0, int))
    if not (named >= 0).any():
        return {}
    first = int(np.argmax(named >= 0))
    return {
        "named_input": [*inputs, None][named[first]],
        "named_step": int(tensors["inference_step"][first]),
        "named_prompt": prompts[first],
    }


def robot_state(raw: RawObs) -> np.ndarray:
    """The robot's state [s]: the vectors of a raw observation, joined in order of their keys."""
    vectors = [np.asarray(raw[key]) for key in sorted(raw) if not isinstance(raw[key], str)]
    return np.concatenate(
        [np.zeros(0, np.float32), *(v.astype(np.float32) for v in vectors if v.ndim == 1)]
    )


def _host(value: jax.Array | np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == jax.numpy.bfloat16 else array


def is_scalar(value: Any) -> bool:
    """Whether JSON can hold the value as it is."""
    if isinstance(value, float | np.floating):
        return bool(np.isfinite(value))
    return value is None or isinstance(value, str | bool | int | np.bool_ | np.integer)


def _side_by_side(raw: RawObs, cameras: tuple[str, ...]) -> np.ndarray:
    pictures = [np.asarray(raw[name]) for name in cameras]
    if len({picture.shape[0] for picture in pictures}) > 1:
        sizes = {name: picture.shape for name, picture in zip(cameras, pictures, strict=True)}
        raise ValueError(f"cameras of different heights {sizes}: a video needs them to be equal.")
    return np.concatenate(pictures, axis=1)
