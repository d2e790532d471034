"""`Trace`: one recorded episode.

Times come in two clocks: an env step (T of them) is one action executed, an inference (N of them)
is one chunk predicted, of which the first few actions are executed. `inference_step` joins them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Json = Any


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """One episode.

    Attributes:
        seed: names the episode: start state, task and the policy's noise all follow from it.
        env_id: the gymnasium id of the environment.
        task: what was asked for, as the environment names it.
        prompt: the instruction that the policy read.
        policy: name of the policy.
        policy_fingerprint: which weights, configuration and normaliser.
        perturbation: what was changed in the environment; {} for nothing.
        success: None when the episode crashed.
        failure_cause: the environment's word for what went wrong, if it has one.
        error: the traceback of a crash. A crash is neither a success nor a failure.
        info: the scalars of the environment's last `info`.
        state: robot state before each action.
        actions: executed actions, in the env's units.
        chunks: predicted actions, in the env's units.
        inference_step: env step of each inference.
        timings_ms: wall time of the batched inference that the episode took part in (prepare,
            sample and finish, until the device is done); NaN where it is not known.
        features: `str(tap)` -> values of each inference, without the batch axis.
        aux: further named outputs of the policy, per inference.
        score, threshold, alarm, edited: what a monitor reported at each inference (failure score,
            its threshold, whether it raised the alarm, whether the action was steered); None for a
            policy without a monitor.
        unsound, named, input_score, input_threshold: what a monitor of its inputs reported (whether
            one is unsound, and which, see `recover.watched`); None without one.
        images: camera key -> exactly what the policy saw at each inference; only kept, like
            `frames`, for episodes recorded as video.
        frames: the cameras side by side, before each action and once after the last. Not in the
            trace file: a stored run has them as `Run.video(seed)`.
    """

    seed: int
    env_id: str
    task: str
    prompt: str
    policy: str
    policy_fingerprint: str
    success: bool | None
    state: Float[np.ndarray, "t s"]
    actions: Float[np.ndarray, "t a"]
    chunks: Float[np.ndarray, "n h a"]
    inference_step: Int[np.ndarray, " n"]
    timings_ms: Float[np.ndarray, " n"]
    perturbation: dict[str, Json] = dataclasses.field(default_factory=dict)
    failure_cause: str | None = None
    error: str | None = None
    info: dict[str, Json] = dataclasses.field(default_factory=dict)
    features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    aux: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    score: Float[np.ndarray, " n"] | None = None
    threshold: Float[np.ndarray, " n"] | None = None
    alarm: Bool[np.ndarray, " n"] | None = None
    edited: Bool[np.ndarray, " n"] | None = None
    unsound: Bool[np.ndarray, " n"] | None = None
    named: Int[np.ndarray, " n"] | None = None
    input_score: Float[np.ndarray, " n"] | None = None
    input_threshold: Float[np.ndarray, " n"] | None = None
    images: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    frames: UInt8[np.ndarray, "frames height width 3"] | None = None

    @property
    def episode(self) -> str:
        """The episode's file name."""
        return episode_name(self.seed)

    def row(self) -> dict[str, Json]:
        """The episode in one line, JSON types only: what `episodes.parquet` holds."""
        labels = {name: getattr(self, name) for name in _LABELS}
        first, median = None, None
        if self.alarm is not None and self.alarm.any():
            first = int(self.inference_step[int(np.argmax(self.alarm))])
        if len(self.timings_ms) and np.isfinite(self.timings_ms).all():
            median = float(np.median(self.timings_ms))
        return labels | {
            "steps": len(self.actions),
            "inferences": len(self.chunks),
            "monitored": self.alarm is not None,
            "first_alarm_step": first,
            "edited_inferences": 0 if self.edited is None else int(self.edited.sum()),
            "median_ms": median,
            **{name: self.info.get(name) for name in FAULT_COLUMNS},
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """All arrays under flat names, the layout of a trace file."""
        flat = {name: getattr(self, name) for name in _ARRAYS}
        for group in _GROUPS:
            flat |= {f"{group}/{key}": value for key, value in getattr(self, group).items()}
        return {name: np.ascontiguousarray(v) for name, v in flat.items() if v is not None}

    @classmethod
    def from_parts(cls, row: Mapping[str, Json], tensors: Mapping[str, np.ndarray]) -> Trace:
        """The inverse of `row` and `tensors`."""
        fields: dict[str, Any] = {name: row[name] for name in _LABELS}
        fields |= {name: tensors[name] for name in _ARRAYS if name in tensors}
        for group in _GROUPS:
            prefix = f"{group}/"
            fields[group] = {
                name.removeprefix(prefix): value
                for name, value in tensors.items()
                if name.startswith(prefix)
            }
        return cls(**fields)


# Kind of dtype and number of axes.
_ARRAYS: dict[str, tuple[str, int]] = {
    "state": ("f", 2),
    "actions": ("f", 2),
    "chunks": ("f", 3),
    "inference_step": ("i", 1),
    "timings_ms": ("f", 1),
    "score": ("f", 1),
    "threshold": ("f", 1),
    "alarm": ("b", 1),
    "edited": ("b", 1),
    "unsound": ("b", 1),
    "named": ("i", 1),
    "input_score": ("f", 1),
    "input_threshold": ("f", 1),
}
FAULT_COLUMNS = (
    "fault",
    "fault_input",
    "fault_strength",
    "fault_onset",
    "named_input",
    "named_step",
)
"""What went wrong on purpose, from which step on; and which input was named, at which step."""
_GROUPS = ("features", "aux", "images")
_LABELS = tuple(
    field.name
    for field in dataclasses.fields(Trace)
    if field.name not in (*_ARRAYS, *_GROUPS, "frames")
)


# Types of a row's fields; those that may be None name it.
_ROW: dict[str, tuple[type, ...]] = {
    "seed": (int,),
    "env_id": (str,),
    "task": (str,),
    "prompt": (str,),
    "policy": (str,),
    "policy_fingerprint": (str,),
    "success": (bool, type(None)),
    "perturbation": (dict,),
    "failure_cause": (str, type(None)),
    "error": (str, type(None)),
    "info": (dict,),
    "steps": (int,),
    "inferences": (int,),
    "monitored": (bool,),
    "first_alarm_step": (int, type(None)),
    "edited_inferences": (int,),
    "median_ms": (float, int, type(None)),
}


def checked_row(row: Any) -> dict[str, Json]:
    """A row that was read from somewhere; ValueError says what no episode's row can hold."""
    if not isinstance(row, dict):
        raise ValueError("a row is not a JSON object")
    for name, kinds in _ROW.items():
        value = row.get(name, ...)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            shown = "missing" if value is ... else f"{value!r:.60}"
            raise ValueError(f"{name} of an episode is {shown}")
    counts = [row[name] for name in ("seed", "steps", "inferences", "edited_inferences")]
    if min(counts) < 0 or row["edited_inferences"] > row["inferences"] or row["seed"] >= 2**31:
        raise ValueError(f"seed, steps, inferences and edited inferences are {counts}")
    if (row["success"] is None) != (row["error"] is not None):
        raise ValueError(f"episode {row['seed']} neither ended nor crashed")
    return dict.fromkeys(FAULT_COLUMNS) | row  # an older row has none


def check_tensors(tensors: Mapping[str, np.ndarray], row: Mapping[str, Json]) -> None:
    """Raises ValueError unless the arrays of a trace file are those of an episode with this row."""
    steps, inferences = row["steps"], row["inferences"]
    for name in ("state", "actions", "chunks", "inference_step", "timings_ms"):
        if name not in tensors:
            raise ValueError(f"{name} is missing")
    for name, array in tensors.items():
        if name not in _ARRAYS and not name.startswith(tuple(f"{group}/" for group in _GROUPS)):
            raise ValueError(f"{name!r:.60} is not an array of a trace")
        kind, axes = _ARRAYS.get(name, (array.dtype.kind, max(array.ndim, 1)))
        length = steps if name in ("state", "actions") else inferences
        if array.dtype.kind != kind or array.ndim != axes or len(array) != length:
            raise ValueError(
                f"{name!r:.60} is {array.dtype} {array.shape} in an episode of {steps} steps and "
                f"{inferences} inferences"
            )
    begun, widths = tensors["inference_step"], [tensors[n].shape[-1] for n in ("chunks", "actions")]
    if (np.diff(begun) < 0).any() or (begun < 0).any() or (begun > steps).any():
        raise ValueError(f"inferences are not at steps 0 to {steps}, in order")
    if steps and inferences and widths[0] != widths[1]:
        raise ValueError(f"actions of {widths[1]} numbers come from chunks of {widths[0]}")


def episode_name(seed: int) -> str:
    """File name of the episode of a seed; sorts like the seed."""
    return f"{seed:06d}"


def to_json(value: Any) -> str:
    """JSON text of settings: numpy scalars and arrays, tuples and dataclasses are fine.

    Raises:
        ValueError: NaN or Inf, or a type without an obvious JSON form.
    """
    return json.dumps(value, default=_plain, sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Json:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise ValueError(f"{value!r} ({type(value).__name__}) has no JSON form: use plain values.")
