"""The page of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mistjax.report import plots
from mistjax.report.blocks import Block, Facts, Plot, Table, Text
from mistjax.report.every_episode import every_episode, picks
from mistjax.report.html import Section, write_report
from mistjax.studies.arms import find_arm
from mistjax.studies.table import Row

if TYPE_CHECKING:
    from mistjax.studies.run import Found, StudyPlan


def write_page(
    out: Path,
    config: StudyPlan,
    found: Found,
    episodes: Sequence[Section] = (),
    filmed: Mapping[tuple[str, str, int], str] | None = None,
) -> Path:
    """Writes the page on what has been played so far, with sections on single episodes and links to
    the videos in them (see `every_episode`).
    """
    by_condition: dict[str, list[Row]] = {}
    for row in found.rows:
        by_condition.setdefault(row.condition, []).append(row)
    sections = [_condition(name, rows) for name, rows in by_condition.items()]
    if len(by_condition) > 1:
        sections.insert(1, Section("Everywhere", [Table(matrix(found.rows), "Success.")]))
    sections[1:1] = episodes
    if found.targets:
        sections.append(Section("Targets", [Text(_TARGETS), Table(target_rows(found.targets))]))
    if any(sum(counts.values()) for counts in found.losses.values()):
        sections.append(Section("What loses", [Text(_LOSSES), Table(loss_rows(found.losses))]))
    runs = {
        (where, arm): rows.values()
        for where, arms in found.outcomes.items()
        for arm, rows in arms.items()
    }
    if any(runs.values()):
        sections.append(every_episode(runs, filmed))
    sections.append(Section("Arms", [Table(_arms(config, found))]))
    return write_report(
        sections, out, config.title or f"Study {config.name}", config.study.question
    )


def _condition(name: str, rows: Sequence[Row]) -> Section:
    by_arm = {row.arm: row for row in rows}
    blocks: list[Block] = []
    if "mist" in by_arm:
        mist, bare = by_arm["mist"], by_arm["bare"]
        blocks.append(Facts({arm: _fact(by_arm[arm]) for arm in ("bare", "mist")}))
        if mist.n and bare.n:
            blocks.append(
                Text(f"{mist.repaired} episodes repaired, {mist.broken} broken of {mist.n}.")
            )
    blocks.append(Plot(plots.success_bars({row.arm: row.rate for row in rows}, "bare")))
    links = picks([row.arm for row in rows], PICKS, name)
    blocks.append(Table(table_rows(rows), _CAPTION, links=links))
    return Section(name.replace("_", " ").capitalize(), blocks)


PICKS: Mapping[str, Mapping[str, str]] = {
    "success [95%] (k/n)": {"outcome": "succeeded"},
    "repaired / broken": {"change": "repaired"},
    "alarms in clean ones": {"fault": "none", "alarm": "yes"},
}
"""Column of a condition's table -> the episodes that it counts."""
_CAPTION = (
    "Success with the 95% Wilson interval. All arms play the same seeds; p by McNemar's exact "
    "test, with Holm's correction over the arms. Alarms: clean episodes in which an input was "
    "named. Time of an inference relative to bare, on a machine that may have been busy."
)
_TARGETS = (
    "Fixed before anything was measured. Differences in percentage points of success with a "
    "bootstrap 95% interval over the paired episodes; p by McNemar's test, with Holm's correction "
    "over all rows."
)
_LOSSES = (
    "Failures of the arm `mist` by the link that lost them: a false alarm (before the onset, or in "
    "an episode without a fault), detection (no alarm), naming (another input, or none), timing "
    "(more than one inference late), the remedy (right and in time), or the policy (no input is "
    "unsound, or the episode was over before its onset)."
)


def table_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One row per arm, ready to print."""
    return [
        {
            "arm": row.arm,
            "success [95%] (k/n)": str(row.rate),
            "repaired / broken": "–" if row.arm == "bare" else f"{row.repaired} / {row.broken}",
            "p against bare": number(row.p_against_bare, ".2g"),
            "p against always on": number(row.p_against_always, ".2g"),
            "alarms in clean ones": number(row.alarms_per_clean_episode, ".0%"),
            "time": number(row.overhead, ".2f"),
            "crashed": str(row.crashed),
        }
        for row in rows
    ]


def matrix(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One row per condition, one column per arm."""
    arms = dict.fromkeys(row.arm for row in rows)
    by = {(row.condition, row.arm): row for row in rows}
    return [
        {"condition": name, "n": str(max(row.n for row in rows if row.condition == name))}
        | {
            arm: number(by[name, arm].rate.value if (name, arm) in by else None, ".0%")
            for arm in arms
        }
        for name in dict.fromkeys(row.condition for row in rows)
    ]


def target_rows(targets: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row per target."""
    return [
        {
            "target": f"{t['arm']} over {t['against']}, {t['condition'].replace('_', ' ')}",
            "aim": f"{t['points']:+.0f}" + (f", p < {t['p']:g}" if t["p"] < 1 else ""),
            "measured": "{:+.1f} [{:+.1f}, {:+.1f}]".format(
                t["difference"], *t["difference_interval"]
            ),
            "p": f"{t['corrected_p']:.2g}",
            "n": str(t["n"]),
            "": "met" if t["met"] else "missed",
        }
        for t in targets
    ]


def loss_rows(losses: Mapping[str, Mapping[str, int]]) -> list[dict[str, str]]:
    """One row per condition, one column per link."""
    return [
        {"condition": name, "failures": str(sum(counts.values()))}
        | {link: str(count) for link, count in counts.items()}
        for name, counts in losses.items()
    ]


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def _arms(config: StudyPlan, found: Found) -> list[dict[str, str]]:
    rows = []
    for name in config.chosen_arms:
        if name == "always_best":
            says = (
                f"the remedy of {found.best} alone, always on: the best single one on tuning seeds"
            )
        else:
            says = find_arm(name).says
        rows.append({"arm": name, "what it is": says})
    if found.preparation:
        kept = "every arm, bare too, keeps the first instruction of an episode; this costs nothing"
        rows.append({"arm": "preparation", "what it is": kept})
    return rows


def _fact(row: Row) -> tuple[str, str]:
    low, high = row.interval
    return f"{row.rate.value:.0%}" if row.n else "–", f"95% {low:.0%} to {high:.0%}; n = {row.n}"
