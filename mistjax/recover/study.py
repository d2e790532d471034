"""A paired study: the bare policy and its monitored arms on the same seeds, a table and a report.

Arms: `bare`; `monitor` watches only, so its actions must equal the bare ones; `random` steers at
the same alarms along random directions of the same length, the control for steering at all; `mist`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mistjax.detect.calibration.drift import known_excess, watched_drift
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.recover.artifact import ARMS, load_mist
from mistjax.recover.explanation import alarm_explanations
from mistjax.recover.mist import MistPolicy
from mistjax.report.blocks import Table, Text
from mistjax.report.build import build_report, explanations
from mistjax.report.html import Section
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import stand_ins, table, task_table

ALL_ARMS = ("bare", *ARMS)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """What is compared, where and how often.

    Attributes:
        policy: checkpoint of the bare policy.
        mist: folder of its monitor and remedy; needed by every arm but `bare`.
        out: each arm's run goes into a folder of its name, the page is `report.html` beside them.
        arms: of `ALL_ARMS`; the first one is what the others are compared with.
        plan: the episodes of each arm.
        stratum: which threshold of the monitor, where it has several.
        preset: robot preset of the policy; None is the checkpoint's own.
        title: of the report.
    """

    policy: str | Path
    mist: Path | None
    out: Path
    arms: tuple[str, ...] = ALL_ARMS
    plan: EpisodePlan = dataclasses.field(default_factory=lambda: EpisodePlan(videos=3))
    stratum: str | None = None
    preset: str | None = None
    title: str = "Paired study"


def run_study(config: StudyConfig) -> dict[str, Run]:
    """Runs every arm, prints the table and writes the report; goes on where it was interrupted.

    Returns:
        arm -> run.

    Raises:
        ValueError: an unknown arm, no `mist` for an arm that needs it, or `out` holds runs of
            something else.
        FileNotFoundError, FingerprintError: see `load_mist`.
    """
    unknown = sorted(set(config.arms) - set(ALL_ARMS))
    if unknown or not config.arms:
        raise ValueError(f"arms are {config.arms}: choose some of {', '.join(ALL_ARMS)}.")
    bare = load_policy(config.policy, config.preset)
    policies = {arm: _arm(bare, arm, config) for arm in config.arms}
    runs = {}
    for arm, policy in policies.items():
        print(f"{arm}:", flush=True)
        runs[arm] = collect(
            policy,
            config.out / arm,
            config.plan,
            env_options=bare.preset.env_options,
            aux=() if arm in ("bare", "monitor") else _why(bare),
        )
    print(f"\n{format_table(table(runs))}\n")
    tasks = []
    if config.plan.suite is not None:
        tasks = [Section("Tasks", [Table(task_table(runs), "Brackets are 95% Wilson intervals.")])]
        print(f"{format_table(task_table(runs))}\n")
    if replaced := stand_ins(runs[config.arms[0]]):
        print(f"Stand-in: {replaced}.\n")
    page = build_report(
        runs,
        config.out / "report.html",
        title=config.title,
        subtitle=_subtitle(config, bare),
        extra=[*_alarms(bare, runs), *_calibration(config, policies, runs), *tasks],
    )
    print(f"Report: {page}")
    return runs


def _arm(bare: Policy, arm: str, config: StudyConfig) -> Policy:
    if arm == "bare":
        return bare
    if config.mist is None:
        raise ValueError(f"arm {arm!r} needs a monitor: give the folder of one (`--mist`).")
    return load_mist(config.mist, bare, arm, stratum=config.stratum)


def _why(policy: Policy) -> tuple[str, ...]:
    """The outputs that explain an alarm."""
    cameras = tuple(f"why/{name}" for name in policy.spec.cameras)
    return ("cause", *cameras, "why/text", "why/state")


def _alarms(policy: Policy, runs: dict[str, Run]) -> list[Section]:
    """The report's section on what the alarms relied on; none if no remedy began on video."""
    shown = alarm_explanations(policy, runs["mist"]) if "mist" in runs else []
    return [explanations(shown)] if shown else []


def _calibration(
    config: StudyConfig, policies: dict[str, Policy], runs: dict[str, Run]
) -> list[Section]:
    """What the threshold promises, and whether the watched successes still look like those that it
    was calibrated on; none without the arm `monitor`.
    """
    if "monitor" not in runs:
        return []
    watched = policies["monitor"]
    assert config.mist is not None and isinstance(watched, MistPolicy)
    lines = [watched.monitor.threshold.describe()]
    successes = sum(bool(row["success"]) for row in runs["monitor"].finished)
    if successes and known_excess(config.mist, config.stratum):
        found = watched_drift(config.mist, runs["monitor"], stratum=config.stratum)
        lines.append(found.describe())
    return [Section("Calibration", [Text("\n\n".join(lines))])]


def _subtitle(config: StudyConfig, policy: Policy) -> str:
    plan = config.plan
    changed = ", ".join(f"{name} {value}" for name, value in plan.perturbation.items())
    return (
        f"{policy.spec.name} ({policy.num_parameters / 1e6:.2g} M parameters) in simulation "
        f"({plan.suite or plan.env}), {plan.episodes} episodes"
        f"{' of each task' if plan.suite else ''}"
        f"{', the same in every arm' if len(config.arms) > 1 else ''}, "
        f"{f'perturbation: {changed}' if changed else 'no perturbation'}."
    )


def format_table(rows: Sequence[dict[str, str]]) -> str:
    """Rows of equal keys as aligned text."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])
