"""A paired study as a table and a page; see `recover.study` for its arms."""

from __future__ import annotations

from collections.abc import Sequence

from mistjax.detect.calibration.drift import known_excess, watched_drift
from mistjax.detect.novelty.artifact import CARD as INPUTS
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.policies.load import load_policy
from mistjax.policies.protocol import Policy
from mistjax.realtime.delayed import Delayed
from mistjax.realtime.strategies import NAMES
from mistjax.recover.mist import MistPolicy
from mistjax.recover.study import StudyConfig, load_arms, play
from mistjax.recover.watched import Watched
from mistjax.report.blocks import Table, Text
from mistjax.report.build import build_report, explanations
from mistjax.report.explanation import alarm_explanations
from mistjax.report.html import Section
from mistjax.rollouts.run import Run
from mistjax.rollouts.summary import stand_ins, table, task_table
from mistjax.stats import Rate


def run_study(config: StudyConfig) -> dict[str, Run]:
    """Runs every arm, prints the table and writes the report; resumes where it was interrupted.

    Returns:
        arm -> run.

    Raises:
        ValueError, FileNotFoundError, FingerprintError: see `load_arms` and `play`.
    """
    bare = load_policy(config.policy, config.preset, unnorm_key=config.unnorm_key)
    policies = _delayed(load_arms(bare, config), bare, config)
    runs = play(bare, policies, config)
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


def _delayed(policies: dict[str, Policy], bare: Policy, config: StudyConfig) -> dict[str, Policy]:
    """The arms under the delay of the study, if it has one.

    Raises:
        ValueError: a delay without a strategy, or one that the policy cannot follow.
    """
    if config.strategy is None:
        if config.delay:
            raise ValueError(
                f"delay is {config.delay}, but no strategy says what is executed meanwhile: give "
                f"one of {', '.join(NAMES)}."
            )
        return policies
    motion = None
    if config.mist is not None and (config.mist / INPUTS).exists():
        motion = load_inputs(config.mist, bare.spec.fingerprint).motion
    return {
        arm: Delayed.around(policy, config.strategy, config.delay, motion)
        for arm, policy in policies.items()
    }


def _alarms(policy: Policy, runs: dict[str, Run]) -> list[Section]:
    """The report's section on what the alarms relied on; none if no remedy began on video."""
    shown = alarm_explanations(policy, runs["mist"]) if "mist" in runs else []
    return [explanations(shown)] if shown else []


def _calibration(
    config: StudyConfig, policies: dict[str, Policy], runs: dict[str, Run]
) -> list[Section]:
    """What the threshold promises, and whether the watched successes still look like those that it
    was calibrated on; no section without the arm `monitor`.
    """
    if "monitor" not in runs:
        return []
    watched, lines = policies["monitor"], []
    if isinstance(watched, Delayed):
        watched = watched.policy
    assert config.mist is not None
    if isinstance(watched, Watched):
        lines = [f"Inputs: {watched.inputs.threshold.describe()}", named_inputs(runs["monitor"])]
        watched = watched.policy
    if not isinstance(watched, MistPolicy):
        return [Section("Calibration", [Text("\n\n".join(lines))])]
    lines.insert(0, f"Failures: {watched.monitor.threshold.describe()}")
    successes = sum(bool(row["success"]) for row in runs["monitor"].finished)
    if successes and known_excess(config.mist, config.stratum):
        found = watched_drift(config.mist, runs["monitor"], stratum=config.stratum)
        lines.append(found.describe())
    return [Section("Calibration", [Text("\n\n".join(lines))])]


def named_inputs(run: Run) -> str:
    """How many episodes have an input named, and which."""
    rows = [row for row in run.finished if row["named_step"] is not None]
    names = [row["named_input"] or "none of the inputs" for row in rows]
    counts = ", ".join(f"{name} {names.count(name)}" for name in sorted(set(names)))
    return f"Something is unsound in {Rate(len(rows), len(run.finished))}: {counts or 'nothing'}."


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
