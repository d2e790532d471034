"""A report on runs: the numbers, the scores, the episodes side by side, how it was made."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from mistjax.report import plots
from mistjax.report.blocks import (
    Block,
    Facts,
    Fold,
    Picture,
    Plot,
    Quote,
    Row,
    Table,
    Text,
    Video,
    Words,
)
from mistjax.report.every_episode import every_episode, picks
from mistjax.report.html import Section, write_report
from mistjax.report.unsound import unsound
from mistjax.report.video import write_overlay
from mistjax.rollouts.mp4 import read_mp4
from mistjax.rollouts.run import Run, load_run
from mistjax.rollouts.summary import compare, stand_ins, summarize, table
from mistjax.rollouts.trace import Trace, to_json

_CURVES = 60
_SHOWN_SEEDS = 3
PICKS: Mapping[str, Mapping[str, str]] = {
    "success [95%] (k/n)": {"outcome": "succeeded"},
    "failures detected": {"outcome": "failed", "alarm": "yes"},
    "false alarms": {"outcome": "succeeded", "alarm": "yes"},
    "errors": {"outcome": "crashed"},
}
"""Column of the table of results -> the episodes that it counts."""


def build_report(
    runs: Mapping[str, Run | Path | str],
    out: str | Path,
    *,
    title: str,
    subtitle: str = "",
    extra: Sequence[Section] = (),
) -> Path:
    """Writes a report on several arms; the others are compared with the first.

    Args:
        runs: name of the arm -> run or run folder.
        out: HTML file to write.
        title, subtitle: of the page.
        extra: further sections, placed after the episodes.

    Raises:
        ValueError: a run without a finished episode, or one that lacks a seed of the first.
    """
    loaded = {name: run if isinstance(run, Run) else load_run(run) for name, run in runs.items()}
    if empty := [name for name, run in loaded.items() if not run.finished]:
        raise ValueError(f"no episode of {', '.join(empty)} has ended: there is nothing to report.")
    with tempfile.TemporaryDirectory() as folder:
        sections = [
            results(loaded),
            *scores(loaded),
            *unsound(loaded),
            *episodes(loaded, Path(folder)),
            *extra,
            every_episode({("", name): run.rows for name, run in loaded.items()}, filmed(loaded)),
            latency(loaded),
            provenance(loaded),
        ]
        return write_report(sections, out, title, subtitle)


def results(runs: Mapping[str, Run]) -> Section:
    """Success of every arm, compared by seed with the first; causes of failures."""
    names = list(runs)
    first, last = names[0], names[-1]
    summaries = {name: summarize(run) for name, run in runs.items()}
    facts = {f"success, {last}": _fact(summaries[last].success)}
    if len(runs) > 1:
        pair = compare(runs[first], runs[last])
        facts[f"change from {first}"] = (
            f"{100 * pair.difference:+.0f} points",
            f"{pair.repaired} repaired, {pair.broken} broken of {pair.n} pairs; "
            f"p = {pair.p_value:.2g}",
        )
    watched = next((name for name in names if summaries[name].monitored), None)
    if watched is not None:
        facts[f"failures detected, {watched}"] = _fact(summaries[watched].detected)
        facts[f"false alarms, {watched}"] = _fact(summaries[watched].false_alarms)
    blocks: list[Block] = [
        Facts(facts),
        Table(
            table(runs),
            f"Brackets are 95% Wilson intervals. Every arm is compared with {first} on the same "
            "seeds (McNemar's exact test). Detected: failures with an alarm. False alarms: "
            "successes with one. First alarm (in detected failures) and milliseconds of a batched "
            "inference are medians. Crashed episodes are in no rate.",
            links=picks(names, PICKS),
        ),
    ]
    rates = {name: summary.success for name, summary in summaries.items()}
    pictures: list[Block] = [Plot(plots.success_bars(rates, first), title="Success")]
    causes = sorted({cause for summary in summaries.values() for cause in summary.causes})
    rows = [
        {"cause": cause.replace("_", " ")}
        | {name: str(summary.causes.get(cause, 0)) for name, summary in summaries.items()}
        for cause in causes
    ]
    if rows:
        failed = {
            (number, name): {"arm": name, "cause": row["cause"]}
            for number, row in enumerate(rows)
            for name in names
        }
        pictures.append(Table(rows, "Failed episodes by cause.", "What went wrong", failed))
    blocks.append(Row(pictures, least=420))
    return Section("Results", blocks, stand_ins(runs[first]))


def scores(runs: Mapping[str, Run]) -> list[Section]:
    """The failure score of up to 60 episodes of each monitored arm."""
    figures: list[Block] = []
    for name, run in runs.items():
        seeds = [row["seed"] for row in run.finished if row["monitored"]][:_CURVES]
        traces = [trace for seed in seeds if (trace := run.trace(seed)).score is not None]
        if traces:
            figures.append(Plot(plots.score_curves(traces), title=name))
    if not figures:
        return []
    text = Text(
        "One line per episode, up to where it ended. A dot marks the first alarm: the score was "
        "above the threshold, or not a number."
    )
    return [Section("Failure scores", [text, Row(figures, least=420)])]


def episodes(runs: Mapping[str, Run], folder: Path) -> list[Section]:
    """Recorded episodes with their score drawn in, the same seed side by side in all arms.

    Seeds whose outcome differs between arms come first. `folder` holds the videos until the page is
    written.
    """
    recorded = _recorded(runs)
    blocks: list[Block] = []
    for seed in _chosen(runs, recorded):
        videos = []
        for number, name in enumerate(recorded[seed]):
            trace = runs[name].trace(seed)
            frames, fps = read_mp4(runs[name].video(seed))  # type: ignore[arg-type]
            path = folder / f"{number}-{trace.episode}.mp4"
            write_overlay(path, trace, frames, fps)
            title = f"{name}, seed {seed}"
            videos.append(Video(path, outcome(trace), title, fps, video_id(name, seed)))
        blocks.append(Row(videos, least=330 if len(videos) == 3 else 460))
    if not blocks:
        return []
    text = "Cameras side by side, as the policy sees them."
    if any(summarize(run).monitored for run in runs.values()):
        text += " Below them the failure score as it becomes known, and its threshold."
    return [Section("Episodes", [Text(text), *blocks])]


def _recorded(runs: Mapping[str, Run]) -> dict[int, list[str]]:
    """Seed -> the arms that have a video of it."""
    seeds = sorted({seed for run in runs.values() for seed in run.seeds})
    found = {
        seed: [name for name, run in runs.items() if seed in run.seeds and run.video(seed)]
        for seed in seeds
    }
    return {seed: names for seed, names in found.items() if names}


def _chosen(runs: Mapping[str, Run], recorded: Mapping[int, Sequence[str]]) -> list[int]:
    """The seeds whose videos are shown."""

    def rank(seed: int) -> tuple[bool, int]:
        return len({runs[n].trace(seed).success for n in recorded[seed]}) < 2, seed

    return sorted(recorded, key=rank)[:_SHOWN_SEEDS]


def filmed(runs: Mapping[str, Run], where: str = "") -> dict[tuple[str, str, int], str]:
    """(condition, arm, seed) -> id of its video on the page, see `episodes`."""
    recorded = _recorded(runs)
    return {
        (where, name, seed): video_id(name, seed)
        for seed in _chosen(runs, recorded)
        for name in recorded[seed]
    }


def video_id(arm: str, seed: int) -> str:
    """The id of an episode's video on a page."""
    return f"video-{quote(arm, safe='')}-{seed}"


def outcome(trace: Trace) -> str:
    """How an episode went, in one sentence."""
    ending = "succeeded" if trace.success else "failed"
    if trace.failure_cause is not None:
        ending += f" ({trace.failure_cause.replace('_', ' ')})"
    if trace.error is not None:
        ending = "crashed"
    alarm = ""
    first = trace.row()["first_alarm_step"]
    if first is not None:
        alarm = f"; first alarm at step {first}"
    elif trace.alarm is not None:
        alarm = "; no alarm"
    return f"{ending.capitalize()} after {len(trace.actions)} steps{alarm}."


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why the monitor raised an alarm at one inference of an episode.

    Attributes:
        trace: the episode, recorded with pictures (`record_video`).
        inference: its number.
        sentence: what the monitor says.
        heat: camera key -> how much each patch raised the score, [rows, columns].
        words: the instruction's words, each with how much it raised the score.
    """

    trace: Trace
    inference: int
    sentence: str
    heat: Mapping[str, np.ndarray]
    words: Sequence[tuple[str, float]] = ()


def explanations(shown: Sequence[Explanation]) -> Section:
    """For each alarm: the sentence, what the policy saw and relied on, the words, the score."""
    blocks: list[Block] = []
    for item in shown:
        step = int(item.trace.inference_step[item.inference])
        blocks.append(Quote(item.sentence, f"Seed {item.trace.seed}, at step {step}."))
        pictures: list[Block] = []
        for camera, heat in item.heat.items():
            seen = item.trace.images[camera][item.inference]
            name = camera.rpartition("/")[2].replace("_", " ")
            factor = max(1, 384 // seen.shape[0])
            pictures.append(Picture(seen.repeat(factor, 0).repeat(factor, 1), title=name))
            pictures.append(Picture(plots.heatmap(seen, heat), title=f"{name}: what counted"))
        blocks.append(Row(pictures, least=210))
        if item.words:
            blocks.append(Words(item.words))
        blocks.append(Plot(plots.score_curve(item.trace)))
    text = Text(
        "Where the failure score came from at the alarm. Bright patches and shaded words raised "
        "it; grey parts of the picture did not matter."
    )
    return Section("Why the alarm", [text, *blocks])


def latency(runs: Mapping[str, Run]) -> Section:
    """Wall time of the inferences."""
    times = {
        name: np.concatenate([trace.timings_ms for trace in run.traces()])
        for name, run in runs.items()
        if run.finished
    }
    times = {name: values for name, values in times.items() if np.isfinite(values).any()}
    if not times:
        return Section("Latency", [Text("A compiled rollout does not time single inferences.")])
    text = "Time from the observation to the actions on the host, after compilation."
    medians = {name: float(np.median(values)) for name, values in times.items()}
    if len(medians) > 1:
        first, *others = medians
        ratios = [f"{name} {medians[name] / medians[first]:.2f}" for name in others]
        text += f" Medians relative to {first}: {', '.join(ratios)}."
    return Section("Latency", [Text(text), Plot(plots.latency_histogram(times))])


_SAID = ("policy", "policy_fingerprint", "env_id")


def provenance(runs: Mapping[str, Run]) -> Section:
    """Configuration of every arm, and the last lines of any crash."""
    rows = []
    for name, run in runs.items():
        said = {key: str(run.config.get(key, "unknown")) for key in _SAID}
        changed = run.config.get("perturbation")
        rows.append(
            {
                "arm": name,
                "policy": f"{said['policy']} `{said['policy_fingerprint'][:12]}`",
                "environment": f"`{said['env_id']}`",
                "perturbation": f"`{to_json(changed)}`" if changed else "none",
                "seeds": _ranges(run.seeds),
                "taps": " ".join(f"`{tap}`" for tap in run.config.get("taps") or ()) or "none",
            }
        )
    blocks: list[Block] = [Table(rows)]
    for name, run in runs.items():
        errors = [row for row in run.rows if row["error"] is not None]
        if errors:
            last = [
                f"seed {row['seed']}: {''.join(row['error'].strip().splitlines()[-1:])}"
                for row in errors
            ]
            blocks.append(Fold(f"{name}: {len(errors)} crashed", "\n".join(last)))
    return Section("How this was made", blocks)


def _fact(rate) -> tuple[str, str]:
    if not rate.n:
        return "–", "no episode"
    low, high = rate.interval
    return f"{rate.value:.0%}", f"95% interval {low:.0%} to {high:.0%}; {rate.k} of {rate.n}"


def _ranges(seeds: Sequence[int]) -> str:
    """`0–4, 9`."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ", ".join(f"{a}–{b}" if b > a else str(a) for a, b in parts)
