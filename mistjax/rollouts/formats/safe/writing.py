"""Episodes of a run as SAFE's rollouts; see `reading` for the layouts."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from mistjax.rollouts.formats.safe.reading import ACTIONS
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace
from mistjax.untrusted import open_file


def write(run: Run, out: Path, feature: str, layout: str) -> None:
    """Writes the finished episodes.

    Raises:
        FileExistsError: `out` holds something.
        ValueError: no finished episode, or what was recorded does not fit the layout.
    """
    if layout not in ("pi0", "openvla"):
        raise ValueError(f"layout {layout!r}: expected pi0 or openvla.")
    if not run.finished:
        raise ValueError("the run has no finished episode to export.")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    tasks = sorted({row["task"] for row in run.finished})
    written = 0
    for number, trace in enumerate(run.traces()):
        hidden = hidden_states(trace, feature, {"pi0": 4, "openvla": 3}[layout])
        about = {
            "task_suite_name": trace.env_id.removeprefix("safe/"),
            "task_id": int(trace.info.get("task_id", tasks.index(trace.task))),
            "task_description": trace.prompt,
            "episode_success": bool(trace.success),
        }
        episode = int(trace.info.get("episode_idx", trace.seed))
        if layout == "openvla":
            _write_openvla(out, trace, about | {"eposide_idx": episode}, hidden, run)
            continue
        executed = run.config.get("execute_steps") or trace.chunks.shape[1]
        about |= {
            "episode_idx": episode,
            "model_infer_times": len(trace.chunks),
            "replan_steps": int(executed),
        }
        _dump(about, out / "env_records" / f"{number:06d}.pkl")
        for h, chunk in zip(hidden, trace.chunks, strict=True):
            step = {"pre_velocity": h, "actions": chunk}
            _dump(step, out / "policy_records" / f"{written:08d}_meta.pkl")
            written += 1


def hidden_states(trace: Trace, feature: str, ndim: int) -> np.ndarray:
    """The feature with `ndim` axes; the layer axis of a tap on one layer is left out.

    Raises:
        ValueError: not recorded, or of another shape.
    """
    if feature not in trace.features:
        raise ValueError(
            f"feature {feature!r} was not recorded: there are {sorted(trace.features)}."
        )
    value = trace.features[feature]
    layer = -3 if feature.endswith("/tokens") else -2
    if "@" in feature and value.shape[layer] == 1:
        value = value.squeeze(layer)
    if value.ndim != ndim:
        wanted = {4: "[N,steps,horizon,D], e.g. action.resid@-1/action/tokens", 3: "[N,tokens,D]"}
        raise ValueError(
            f"feature {feature!r} has shape {trace.features[feature].shape}: the layout needs "
            f"{wanted[ndim]} of one layer."
        )
    return value


def _write_openvla(
    out: Path, trace: Trace, about: dict[str, Any], hidden: np.ndarray, run: Run
) -> None:
    if trace.actions.shape != (len(hidden), len(ACTIONS)):
        raise ValueError(
            f"seed {trace.seed} has actions {trace.actions.shape} for {len(hidden)} inferences: "
            f"OpenVLA's layout needs one action of {len(ACTIONS)} numbers per inference. Use pi0's."
        )
    number = about["eposide_idx"]
    stem = f"task{about['task_id']}--ep{number}--succ{int(about['episode_success'])}"
    _dump(about | {"hidden_states": hidden}, out / f"{stem}.pkl")
    columns = {f"action/{name}": trace.actions[:, i] for i, name in enumerate(ACTIONS)}
    for key, kind in (("token_log_prob", "prob"), ("token_entropy", "entropy")):
        if key in trace.aux:
            values = np.exp(trace.aux[key]) if kind == "prob" else trace.aux[key]
            columns |= {f"action/token_{i}_{kind}": column for i, column in enumerate(values.T)}
    with (out / f"{stem}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    if (video := run.video(trace.seed)) is not None:
        with open_file(video) as file:
            (out / f"{stem}.mp4").write_bytes(file.read())


def _dump(value: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        pickle.dump(value, file)
