"""SAFE's two layouts of rollouts, read as episodes.

- openvla: one `task{k}--ep{e}--succ{s}.pkl` per episode with `hidden_states` [T,tokens,D], and a
  csv with the executed actions and the tokens' probabilities and entropies.
- pi0: `env_records/*.pkl`, one per episode, and `policy_records/*meta.pkl`, one per inference, in
  natural order, with `pre_velocity` [steps,horizon,D] (pi0) or `encoded` and `pre_logits`
  [tokens,D] (pi0-FAST), and `actions` [H,A].

Not known from the files: environment seeds, times, robot states, and how many actions of the last
chunk were executed. An episode's number stands for its seed; times are NaN.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mistjax.hooks.pooling import pool
from mistjax.rollouts.formats.safe.pickles import load
from mistjax.rollouts.trace import Trace
from mistjax.untrusted import open_file, read_text, reading, refuse_link

ACTIONS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "dgripper")
ROLLOUT = "a rollout in SAFE's layout"
HIDDEN = ("pre_velocity", "encoded", "pre_logits")


class Episode(NamedTuple):
    """One rollout: N inferences.

    Attributes:
        about: task_suite_name, task_id, task_description, episode_idx, episode_success.
        features: name -> [N,...,D].
        chunks: [N,H,A].
        executed: actions of each chunk that were executed.
        aux: further arrays [N,...].
        video: its mp4, if there is one.
    """

    about: Mapping[str, Any]
    features: dict[str, np.ndarray]
    chunks: np.ndarray
    executed: int
    aux: dict[str, np.ndarray]
    video: Path | None = None


class Source(NamedTuple):
    """A layout by name, and what reads its episodes."""

    name: str
    episodes: Callable[[Path, Sequence[str]], Iterator[Episode]]


def find_layout(folder: Path) -> Source:
    """Which layout a folder has; ValueError when neither, or where a link stands for a folder."""
    records = folder / "env_records", folder / "policy_records"
    for place in (folder, *records):
        refuse_link(place)
    if all(place.is_dir() for place in records):
        return Source("pi0", read_pi0)
    if any(folder.glob("task*--ep*--succ*.pkl")):
        return Source("openvla", read_openvla)
    raise ValueError(
        f"{folder} has no rollouts in a layout of SAFE's: expected task*--ep*--succ*.pkl files "
        "(OpenVLA), or env_records/ and policy_records/ (pi0, pi0-FAST)."
    )


def read_openvla(folder: Path, commands: Sequence[str]) -> Iterator[Episode]:
    """Episodes of the layout of OpenVLA: a pickle, a table and a video each."""
    for path in _natural(folder.glob("task*--ep*--succ*.pkl")):
        with reading(path, ROLLOUT):
            episode = _openvla(path, commands)
        yield episode


def _openvla(path: Path, commands: Sequence[str]) -> Episode:
    about = dict(load(path))
    hidden = pooled(list(about.pop("hidden_states")), commands, path)
    about["episode_idx"] = about.pop("eposide_idx", about.get("episode_idx"))  # SAFE's spelling
    with reading(path.with_suffix(".csv"), "a table of actions"):
        columns = _columns(path.with_suffix(".csv"), len(hidden))
    actions = np.stack([columns[f"action/{name}"] for name in ACTIONS], axis=1)
    aux = {}
    for kind, name in (("prob", "token_log_prob"), ("entropy", "token_entropy")):
        keys = _natural(k for k in columns if re.fullmatch(rf"action/token_\d+_{kind}", k))
        if keys:
            aux[name] = np.stack([columns[key] for key in keys], axis=1)
    if "token_log_prob" in aux:
        with np.errstate(divide="ignore"):  # a probability too small to be written
            aux["token_log_prob"] = np.log(aux["token_log_prob"])
    video = path.with_suffix(".mp4")
    refuse_link(video)
    features = {"hidden_states": hidden}
    return Episode(about, features, actions[:, None], 1, aux, video if video.exists() else None)


def read_pi0(folder: Path, commands: Sequence[str]) -> Iterator[Episode]:
    """Episodes of the layout of pi0: environment and policy records apart."""
    records = iter(_natural((folder / "policy_records").glob("*meta.pkl")))
    for path in _natural((folder / "env_records").glob("*.pkl")):
        with reading(path, ROLLOUT):
            episode = _pi0(path, records, commands)
        yield episode
    if (left := sum(1 for _ in records)) > 0:
        raise ValueError(f"{left} policy records belong to no episode of env_records.")


def _pi0(path: Path, records: Iterator[Path], commands: Sequence[str]) -> Episode:
    about = dict(load(path))
    times, executed = int(about["model_infer_times"]), int(about["replan_steps"])
    steps = [load(record) for _, record in zip(range(times), records, strict=False)]
    if len(steps) < times or not steps:
        raise ValueError(
            f"{path.name} has {times} inferences, but only {len(steps)} policy records are "
            "left: the folder is incomplete."
        )
    features = {
        name: pooled([step[name] for step in steps], commands, path)
        for name in HIDDEN
        if name in steps[0]
    }
    chunks = np.stack([_numbers(step["actions"], "actions").astype(np.float32) for step in steps])
    if chunks.ndim != 3 or not 1 <= executed <= chunks.shape[1]:
        raise ValueError(
            f"{path.name} executes {executed} actions of chunks {chunks.shape[1:]}: expected "
            "chunks [H,A] and from 1 to H executed ones."
        )
    if not np.isfinite(chunks).all():
        raise ValueError(f"{path.name}: the actions of an inference are not finite.")
    return Episode(about, features, chunks, executed, {})


def _numbers(values: Any, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" and values.dtype != ml_dtypes.bfloat16:
        raise ValueError(f"{name} hold {values.dtype}, expected numbers.")
    return values


def pooled(inferences: list[Any], commands: Sequence[str], path: Path) -> np.ndarray:
    """Hidden states of all inferences, [N,...,D]."""
    values = [_numbers(value, "hidden states") for value in inferences]
    if not values or not values[0].ndim:
        raise ValueError(f"{path.name} has no hidden states.")
    for command in commands:
        values = [np.asarray(pool(value.astype(np.float32), command)) for value in values]
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
        raise ValueError(
            f"{path.name}: hidden states have shapes {shapes[0]} to {shapes[-1]}, so tokens must "
            "be pooled: give --pool mean."
        )
    stacked = np.stack(values)
    return stacked if stacked.dtype == np.float16 else stacked.astype(np.float32)


def to_trace(episode: Episode, number: int, policy: str) -> Trace:
    """The episode as a trace; its number stands for the seed."""
    about, n = episode.about, len(episode.chunks)
    executed = episode.chunks[:, : episode.executed]
    suite = str(about["task_suite_name"])
    sizes = ",".join(f"{k}{list(v.shape[1:])}" for k, v in sorted(episode.features.items()))
    labels = {name: int(about[name]) for name in ("task_id", "episode_idx")}
    return Trace(
        seed=number,
        env_id=f"safe/{suite}",
        task=str(about["task_description"]),
        prompt=str(about["task_description"]),
        policy=policy,
        policy_fingerprint=f"imported {policy} {sizes}",
        success=bool(about["episode_success"]),
        state=np.zeros((executed.shape[0] * executed.shape[1], 0), np.float32),
        actions=executed.reshape(-1, executed.shape[-1]),
        chunks=episode.chunks,
        inference_step=np.arange(n, dtype=np.int32) * episode.executed,
        timings_ms=np.full(n, np.nan, np.float32),
        info=labels | {"success": bool(about["episode_success"])},
        features=episode.features,
        aux=episode.aux,
    )


def _columns(path: Path, rows: int) -> dict[str, np.ndarray]:
    """Every numeric column of an episode's csv."""
    refuse_link(path)
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing: the actions of the episode are in it.")
    with open_file(path) as file:
        text = read_text(path, file.read())
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    lacking = [f"action/{name}" for name in ACTIONS if lines and f"action/{name}" not in lines[0]]
    if len(lines) != rows or lacking:
        raise ValueError(
            f"{path.name} has {len(lines)} rows for {rows} steps, and lacks columns {lacking}."
        )
    names = [name for name in lines[0] if name and name.startswith("action/")]
    columns = {name: np.array([float(row[name]) for row in lines], np.float32) for name in names}
    for name in (f"action/{name}" for name in ACTIONS):
        if not np.isfinite(columns[name]).all():
            raise ValueError(f"{path.name}: {name!r} is not finite at every step.")
    return columns


def _natural(names: Any) -> list[Any]:
    """Sorted with numbers in names compared as numbers."""

    def key(name: Any) -> list[Any]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(name))]

    return sorted(names, key=key)
