"""What does a delay of the policy cost, and which strategy of execution costs least?

    python -m experiments.studies.realtime --episodes 200

The shipped board policy, unmonitored, with ordinary sensor noise; every strategy of
`mistjax.realtime.strategies` plays the same seeds at every delay. A delay is a number of actions,
so nothing here depends on this machine. Standing still counts: an episode ends after 120 actions
under every delay. What is measured of an episode:

- jerk: root mean square of the second difference of the commanded velocity, m/s^3 (the gantry
  moves as it is commanded);
- jump at a border: how much the commanded velocity changes where a chunk takes over from another,
  mm/s, and beside it the mean change between any other two actions;
- still: share of the actions at which the robot stands;
- time to finish, of successes, s.

Means are over episodes, with a bootstrap's interval; p is McNemar's against `naive` at the same
delay, with Holm's correction over the strategies there. Interrupt it at will: the same command goes
on, and what is complete is written after every cell. Cells of the results file that are not asked
for, of the same seeds, stay; each holds its episodes' outcomes, so p covers them too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.record import write_results
from mistjax.compilation import enable_cache
from mistjax.demo import MIST, POLICY
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.policies.load import load_policy
from mistjax.realtime.delayed import Delayed
from mistjax.realtime.strategies import NAMES
from mistjax.report.style import FONT_SIZE, LIGHT, label, legend
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.rollouts.trace import Trace
from mistjax.stats import Rate, bootstrap, holm, mcnemar

HERTZ, METRES_PER_UNIT = 10, 0.02


@dataclasses.dataclass(frozen=True)
class Config:
    """What is played.

    Attributes:
        policy: what acts.
        mist: whose model of the robot's motion `vlash` rolls the state forward by.
        work: run folders.
        results, figure: the files that are written.
        episodes: of each strategy at each delay.
        first_seed: unseen by training, calibration and tuning.
        delays: actions that an inference takes, in the order in which they are played.
        strategies: see `mistjax.realtime.strategies`.
        num_envs: in lock-step.
    """

    policy: Path = POLICY
    mist: Path = MIST
    work: Path = Path("runs/realtime")
    results: Path = Path("experiments/results/realtime.json")
    figure: Path = Path("docs/assets/realtime.png")
    episodes: int = 200
    first_seed: int = 23_900_000
    delays: tuple[int, ...] = (0, 2, 4, 1, 8, 6)
    strategies: tuple[str, ...] = NAMES
    num_envs: int = 50


def alike(name: str, delay: int, horizon: int) -> bool:
    """Whether a strategy does what `naive` does: nothing is late, or, unless its chunks begin when
    they arrive, each is over by then.
    """
    late = name in ("wait", "vlash")
    if delay == 0:
        return late or name == "rail"
    return delay >= horizon and not late and name != "naive"


@dataclasses.dataclass(frozen=True)
class Motion:
    """What one episode looks like; see the module for the units. NaN where there is none."""

    success: bool
    seconds: float
    jerk: float
    border: float
    elsewhere: float
    still: float


def motion(trace: Trace, strategy: str, delay: int) -> Motion:
    """Measures an episode."""
    velocity = trace.actions[:, :3].astype(float) * METRES_PER_UNIT * HERTZ
    change = np.linalg.norm(np.diff(velocity, axis=0), axis=-1)  # [t-1], from t to t + 1
    jerk = np.diff(velocity, n=2, axis=0) * HERTZ**2
    later = trace.inference_step[1:]
    borders = np.concatenate([later, later + delay]) if strategy == "wait" else later + delay
    at = np.zeros(len(change), bool)
    at[[b - 1 for b in borders if 1 <= b <= len(change)]] = True
    return Motion(
        success=bool(trace.success),
        seconds=len(velocity) / HERTZ,
        jerk=float(np.sqrt((jerk**2).sum(-1).mean())) if len(jerk) else np.nan,
        border=1e3 * float(change[at].mean()) if at.any() else np.nan,
        elsewhere=1e3 * float(change[~at].mean()) if (~at).any() else np.nan,
        still=float((velocity == 0).all(-1).mean()),
    )


def mean(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean of what is not NaN, with its interval."""
    found = np.asarray(values, float)
    found = found[np.isfinite(found)]
    if not len(found):
        return {"mean": None, "interval": None, "n": 0}
    low, high = bootstrap(lambda rows: float(found[rows].mean()), len(found))
    return {"mean": float(found.mean()), "interval": [low, high], "n": len(found)}


def cell(episodes: Sequence[Motion]) -> dict[str, Any]:
    """A strategy at a delay; `outcomes` has 1 for each success, in the order of the seeds."""
    done = [m for m in episodes if m.success]
    rate = Rate(len(done), len(episodes))
    return {
        "success": {"k": rate.k, "n": rate.n, "interval": rate.interval},
        "outcomes": "".join(str(int(m.success)) for m in episodes),
        "seconds": mean([m.seconds for m in done]),
        **{
            name: mean([getattr(m, name) for m in episodes])
            for name in ("jerk", "border", "elsewhere", "still")
        },
    }


def played(config: Config, policy: Any) -> Iterator[tuple[str, int, Run]]:
    """Every strategy at every delay where it differs from `naive`; what is there is read."""
    moves = load_inputs(config.mist, policy.spec.fingerprint).motion
    plan = EpisodePlan(
        episodes=config.episodes,
        first_seed=config.first_seed,
        num_envs=config.num_envs,
        sensor_noise=True,
    )
    for delay in config.delays:
        for name in config.strategies:
            if alike(name, delay, policy.spec.action_horizon):
                continue
            delayed = Delayed.around(policy, name, delay, moves)
            yield name, delay, collect(delayed, config.work / f"{name}_{delay}", plan)


def main(config: Config) -> dict[str, Any]:
    """Plays, and writes table and figure after every cell."""
    policy = load_policy(config.policy)
    cells, p = kept(config)
    results: dict[str, Any] = {}
    for name, at, run in played(config, policy):
        if run.crashed:
            raise RuntimeError(f"episodes {list(run.crashed)} of {name} at {at} crashed.")
        cells[name][str(at)] = cell([motion(trace, name, at) for trace in run.traces()])
        p |= against_naive(cells)
        results = {
            "command": f"python -m experiments.studies.realtime --episodes {config.episodes}",
            "first_seed": config.first_seed,
            "episodes": config.episodes,
            "horizon": policy.spec.action_horizon,
            "cells": cells,
            "p": p,
        }
        write_results(config.results, results)
        draw(results, config.figure)
    return results


def kept(config: Config) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """(cells, p) of the results file, where they are of the same seeds; every strategy has some."""
    cells: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    if not config.results.exists():
        return cells, {}
    found = json.loads(config.results.read_text())
    if (found["first_seed"], found["episodes"]) != (config.first_seed, config.episodes):
        return cells, {}
    return cells | found["cells"], found["p"]


def against_naive(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """p of each strategy at each delay of which every cell holds its outcomes."""
    found = {}
    for delay in sorted({delay for one in cells.values() for delay in one}):
        at = {name: one[delay] for name, one in cells.items() if delay in one}
        if "naive" not in at or not all("outcomes" in one for one in at.values()):
            continue
        ends = {name: np.array([*one["outcomes"]]) == "1" for name, one in at.items()}
        base = ends.pop("naive")
        found[delay] = holm({name: mcnemar(end, base) for name, end in ends.items()})
    return found


LOOKS = {
    "wait": (LIGHT["muted"], "-"),
    "naive": (LIGHT["alarm"], "-"),
    "ensemble": (LIGHT["arm2"], "-"),
    "rtc": (LIGHT["score"], "-"),
    "rtc_identity": (LIGHT["arm1"], "--"),
    "rtc_closed": (LIGHT["arm1"], ":"),
    "vlash": (LIGHT["steer"], "-"),
    "rail": (LIGHT["good"], "-"),
}
PANELS = {
    "success": "success",
    "seconds": "time to finish, successes, s",
    "jerk": "jerk, m/s³",
    "border": "change of velocity at borders, mm/s",
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The figure: what is measured against the delay, a line a strategy."""
    figure = Figure(figsize=(11, 7.4), layout="constrained", facecolor="white")
    panels = figure.subplots(2, 2)
    for axes, (key, title) in zip(panels.flat, PANELS.items(), strict=True):
        for name, found in results["cells"].items():
            at = filled(results, name)
            color, style = LOOKS[name]
            rows = [(int(d), at[d][key]) for d in sorted(at, key=int)]
            if key == "success":
                points = [(d, c["k"] / c["n"], *c["interval"]) for d, c in rows]
            else:
                points = [(d, c["mean"], *c["interval"]) for d, c in rows if c["n"] >= 5]
            if not found or not points:
                continue
            x, y, low, high = np.array(points).T
            axes.plot(x, y, style, color=color, marker="o", markersize=4, label=name)
            axes.fill_between(x, low, high, color=color, alpha=0.08, linewidth=0)
        axes.tick_params(labelsize=FONT_SIZE - 1, colors=LIGHT["muted"], length=0)
        axes.grid(axis="y", color=LIGHT["line"], linewidth=0.8)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label(axes, "delay of an inference, actions (0.1 s each)", title)
    panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    legend(panels[0, 0], ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def filled(results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The cells of a strategy, with `naive`'s where it does the same."""
    cells, horizon = results["cells"], results["horizon"]
    same = {d: found for d, found in cells["naive"].items() if alike(name, int(d), horizon)}
    return {**same, **cells[name]}


if __name__ == "__main__":
    enable_cache()
    main(tyro.cli(Config))
