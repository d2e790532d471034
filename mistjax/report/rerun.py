"""Episodes for the Rerun viewer: cameras, score against threshold, the monitor's state as a
timeline, actions, and what was said at alarms; with the views arranged.

`export_rerun` writes recorded episodes. A live program opens a stream of its own and logs one
`Moment` per inference, and every action.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mistjax.envs.faults.battery import input_name
from mistjax.files import atomic, refuse_file
from mistjax.report.style import DARK
from mistjax.report.unsound import alarm_sentence, first_named, unusual_cells
from mistjax.report.video import broken, status
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace, episode_name

APPLICATION = "mistjax"
STEP = "step"
"""The timeline: env steps of the episode."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """What is shown of one inference.

    Attributes:
        step: env step at which it was made.
        pictures: camera -> what the policy saw.
        scores: name of a score -> (score, threshold).
        state: what the monitor is doing, e.g. "watching"; "" without one.
        said: why it alarmed, or how the episode went.
        maps: camera -> its picture with a map laid over it.
    """

    step: int
    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    scores: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    state: str = ""
    said: str = ""
    maps: Mapping[str, UInt8[np.ndarray, "h w 3"]] = dataclasses.field(default_factory=dict)


def open_stream(
    episode: str,
    cameras: Sequence[str],
    actions: Sequence[str],
    scores: Sequence[str] = (),
    *,
    out: str | Path | None = None,
) -> Any:
    """A `rerun.RecordingStream` of one episode, with the views arranged.

    Args:
        episode: its name.
        cameras, actions: their names.
        scores: names of the monitor's scores; () without a monitor.
        out: .rrd file to write; None leaves the destination to the caller
            (`stream.connect_grpc()`).

    Raises:
        ImportError: Rerun is not installed.
    """
    rr, rrb = _rerun()
    stream = rr.RecordingStream(APPLICATION, recording_id=episode)
    views = [
        rrb.Horizontal(
            *(rrb.Spatial2DView(origin=_path("cameras", name), name=name) for name in cameras)
        ),
        rrb.StateTimelineView(origin="monitor/state", name="monitor"),
        *(rrb.TimeSeriesView(origin=_path("monitor", name), name=name) for name in scores),
    ]
    beside = [
        rrb.TextDocumentView(origin="said", name="why"),
        *(rrb.TimeSeriesView(origin=_path("actions", name), name=name) for name in actions),
    ]
    layout = rrb.Blueprint(
        rrb.Horizontal(
            rrb.Vertical(*views, row_shares=[3, 1, *([2] * len(scores))]),
            rrb.Vertical(*beside),
            column_shares=[3, 2],
        ),
        rrb.TimePanel(timeline=STEP),
        collapse_panels=True,
    )
    if out is None:
        stream.send_blueprint(layout)
    else:
        stream.save(out, default_blueprint=layout)
    stream.send_recording_name(episode)
    for name in scores:
        for part, role in (("score", "score"), ("threshold", "threshold")):
            line = rr.SeriesLines(names=part, colors=[int(f"{DARK[role][1:]}ff", 16)])
            stream.log(_path("monitor", name, part), line, static=True)
    for name in actions:
        for part, role in (("executed", "score"), ("plain", "muted")):
            line = rr.SeriesLines(names=part, colors=[int(f"{DARK[role][1:]}ff", 16)])
            stream.log(_path("actions", name, part), line, static=True)
    return stream


def show(stream: Any, moment: Moment) -> None:
    """Adds one inference; a map stays until the next picture of its camera."""
    rr, _ = _rerun()
    stream.set_time(STEP, sequence=moment.step)
    for name, picture in moment.pictures.items():
        stream.log(_path("cameras", name), rr.Image(moment.maps.get(name, picture)))
    for name, (score, threshold) in moment.scores.items():
        stream.log(_path("monitor", name, "score"), rr.Scalars(score))
        if np.isfinite(threshold):
            stream.log(_path("monitor", name, "threshold"), rr.Scalars(threshold))
    if moment.state:
        stream.log("monitor/state", rr.StateChange(state=moment.state))
    if moment.said:
        stream.log("said", rr.TextDocument(moment.said))


def act(
    stream: Any,
    step: int,
    names: Sequence[str],
    executed: Float[np.ndarray, " a"],
    plain: Float[np.ndarray, " a"] | None = None,
) -> None:
    """Adds an executed action, and what the bare policy would have done, where that is known."""
    rr, _ = _rerun()
    stream.set_time(STEP, sequence=step)
    for number, name in enumerate(names):
        stream.log(_path("actions", name, "executed"), rr.Scalars(float(executed[number])))
        if plain is not None:
            stream.log(_path("actions", name, "plain"), rr.Scalars(float(plain[number])))


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: the files, and how many of their episodes have no pictures."""

    files: tuple[Path, ...]
    without_pictures: int


def export_rerun(
    run: Run, out: str | Path, seeds: Sequence[int] = (), *, beside: Run | None = None
) -> Exported:
    """Writes episodes as `OUT/SEED.rrd`.

    Args:
        run: recorded episodes.
        out: folder; files of the same name are replaced.
        seeds: which episodes; by default those recorded with pictures, or all if none was.
        beside: a run whose actions on the same seed are drawn as the plain ones, such as the arm
            `bare`. They are the same until the first alarm, and a different episode's after it.

    Raises:
        ValueError: no episode, or a seed that a run lacks.
        ImportError: Rerun is not installed.
    """
    if not run.rows:
        raise ValueError(f"{run.path} has no episode: there is nothing to export.")
    shown = seeds or [seed for seed in run.seeds if run.video(seed)] or run.seeds
    for other in (run, *(() if beside is None else (beside,))):
        if missing := sorted(set(shown) - set(other.seeds)):
            raise ValueError(f"{other.path} has no episode of seed {missing[0]}: choose others.")
    refuse_file(Path(out))
    _rerun()
    Path(out).mkdir(parents=True, exist_ok=True)
    files, blind = [], 0
    for seed in shown:
        trace, file = run.trace(seed), Path(out) / f"{episode_name(seed)}.rrd"
        with atomic(file) as temporary:
            write_episode(
                trace,
                temporary,
                inputs=run.config.get("inputs") or (),
                plain=None if beside is None else beside.trace(seed).actions,
            )
        files.append(file)
        blind += not trace.images
    return Exported(tuple(files), blind)


def write_episode(
    trace: Trace,
    out: Path,
    *,
    inputs: Sequence[str] = (),
    plain: Float[np.ndarray, "t a"] | None = None,
) -> None:
    """Writes one episode.

    Args:
        trace: the episode.
        out: .rrd file.
        inputs: names of the watched inputs, as the run's configuration has them.
        plain: actions to draw beside the executed ones.
    """
    cameras = {key: input_name(key) for key in trace.images}
    names = [f"action {number}" for number in range(trace.chunks.shape[-1])]
    watched = {
        "failure score": (trace.score, trace.threshold),
        "input score": (trace.input_score, trace.input_threshold),
    }
    scores = {
        name: (score, np.full(len(score), np.inf) if limit is None else limit)
        for name, (score, limit) in watched.items()
        if score is not None
    }
    stream = open_stream(trace.episode, [*cameras.values()], names, [*scores], out=out)
    said = _said(trace, inputs)
    for number, step in enumerate(trace.inference_step):
        show(
            stream,
            Moment(
                int(step),
                {name: trace.images[key][number] for key, name in cameras.items()},
                {
                    name: (float(score[number]), float(limit[number]))
                    for name, (score, limit) in scores.items()
                },
                said=said.get(number, ""),
                maps=_maps(trace, number, cameras, inputs),
            ),
        )
    state = ""
    for step in range(len(trace.actions) + 1):
        now = ", ".join(filter(None, (status(trace, step)[0], broken(trace, step))))
        if now != state:
            show(stream, Moment(step, {}, state=now))
            state = now
        if step < len(trace.actions):
            beside = plain[step] if plain is not None and step < len(plain) else None
            act(stream, step, names, trace.actions[step], beside)
    stream.flush()
    stream.disconnect()


def _said(trace: Trace, inputs: Sequence[str]) -> dict[int, str]:
    """Inference -> what is said at it."""
    said = {0: f"Seed {trace.seed}: \u201c{trace.prompt}\u201d"}
    named, words = first_named(trace), alarm_sentence(trace, inputs)
    if named is not None and words is not None:
        said[named] = words
    if trace.alarm is not None and trace.alarm.any():
        first = int(np.argmax(trace.alarm))
        why = "Failure score above its threshold, or not a number."
        said[first] = f"{said[first]}\n\n{why}" if first in said else why
    return said


def _maps(
    trace: Trace, number: int, cameras: Mapping[str, str], inputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """The pictures with the cells that are unlike clean episodes, where there are any."""
    cells = trace.aux.get("evidence/cells")
    if cells is None or trace.unsound is None or not trace.unsound[number]:
        return {}
    found = {}
    for key, name in cameras.items():
        if name not in inputs:
            continue
        seen = trace.images[key][number]
        heat = unusual_cells(seen, cells[number][inputs.index(name)], seen.shape[0])
        if heat is not None:
            found[name] = heat
    return found


def check_installed() -> None:
    """ImportError where Rerun is not."""
    _rerun()


def _path(*parts: str) -> str:
    """An entity path, which may not have spaces."""
    return "/".join(parts).replace(" ", "_")


def _rerun() -> tuple[Any, Any]:
    try:
        import rerun
        import rerun.blueprint
    except ImportError as error:
        raise ImportError(
            "Rerun, which shows episodes, is not installed: pip install 'mistjax[rerun]'."
        ) from error
    return rerun, rerun.blueprint
