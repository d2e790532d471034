"""`run_study`: a study by name, on seeds of your own; resumes where it was interrupted.

Episodes in which an arm does nothing are not played again if the arm `monitor` has played them:
without an alarm, or without an input to repair, the actions are the same bit for bit.

<out>/<condition>/<arm>/   a run folder, see `rollouts.store`
<out>/tuning/<arm>/        single remedies always on, on tuning seeds: which one is the best
<out>/table.json           a list of `Row`s, rewritten whenever an arm is done
<out>/study.json           what was asked, targets, and which link lost the failures
<out>/report.html          the page
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mistjax.envs.faults.splits import SEEDS
from mistjax.files import atomic
from mistjax.policies.latched import LatchedPrompt
from mistjax.policies.load import load_policy
from mistjax.policies.wrapper import traceable
from mistjax.recover.decision import DECISIONS
from mistjax.report.build import episodes, filmed
from mistjax.report.explanation import raw_observation
from mistjax.report.html import Section
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan, RunOptions
from mistjax.rollouts.run import Run, load_run
from mistjax.studies.arms import Subject, find_arm, make_arm
from mistjax.studies.conditions import Condition, condition
from mistjax.studies.page import write_page
from mistjax.studies.registry import STUDIES, Study
from mistjax.studies.shown import blocks, first_repair
from mistjax.studies.table import Outcomes, Row, check_targets, losses, outcomes, rows
from mistjax.tracking import Log, silent

BEST, PAGE = "always_best", "report.html"
SHOWN = 3
"""Repairs on the page of a filmed study."""
LOCKSTEP = 16
"""Environments in lock-step, the same in all arms, where nothing else is asked for on the board."""
FIRST, TUNING = SEEDS["test"].start + 200_000, SEEDS["tuning"].start + 500_000


@dataclasses.dataclass(frozen=True)
class StudyPlan(RunOptions):
    """What is asked; where and how it is played is said by `RunOptions`.

    Attributes:
        name: key of `STUDIES`.
        policy: checkpoint of the bare policy.
        mist: folder of its monitors and remedies.
        out: see the module.
        episodes: of each arm under each condition; with `suite`, of each task.
        first_seed: in every condition: seeds pair arms, not conditions. With `suite` the first
            fixed start of each task; None begins with the test seeds, or with start 0.
        arms, conditions: some of the study's, or others from the registries; None takes all of its
            own.
        sizes: condition -> episodes, where they differ.
        sensor_noise: see `studies.conditions.condition`.
        robust, robust_mist: see `Subject`.
        tuning: episodes of each remedy, to find the best single one; with `suite`, of each task,
            from the starts that follow those of the study.
        preset: robot preset; None is the checkpoint's own.
        title: of the page.

    Raises:
        ValueError: an unknown study, arm or condition, or seeds that overlap those of tuning.
    """

    name: str
    policy: str | Path
    mist: Path
    out: Path
    episodes: int = 200
    first_seed: int | None = None
    arms: tuple[str, ...] | None = None
    conditions: tuple[str, ...] | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sensor_noise: bool | None = None
    robust: str | Path | None = None
    robust_mist: Path | None = None
    tuning: int = 100
    preset: str | None = None
    title: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in STUDIES:
            raise ValueError(
                f"no study is called {self.name!r}: expected one of {', '.join(STUDIES)}."
            )
        for what, given in (("arms", self.chosen_arms), ("conditions", self.chosen_conditions)):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{what} are {list(given)}: expected at least one, each once.")
        if self.chosen_arms[0] != "bare":
            raise ValueError("the first arm is what the others are compared with: expected bare.")
        for arm in self.chosen_arms:
            if arm != BEST:
                find_arm(arm)
        for name in self.chosen_conditions:
            plan = self.plan(self.condition(name))
            used = range(plan.first_seed, plan.first_seed + plan.episodes)
            tuning = range(self.first_tuning, self.first_tuning + self.tuning)
            if max(used.start, tuning.start) < min(used.stop, tuning.stop):
                raise ValueError(
                    f"seeds {used.start} to {used.stop - 1} overlap those that the best single "
                    f"remedy is chosen on, from {tuning.start} on: give another first seed."
                )

    @property
    def study(self) -> Study:
        return STUDIES[self.name]

    @property
    def chosen_arms(self) -> tuple[str, ...]:
        return self.study.arms if self.arms is None else self.arms

    @property
    def chosen_conditions(self) -> tuple[str, ...]:
        return self.study.conditions if self.conditions is None else self.conditions

    @property
    def first(self) -> int:
        if self.first_seed is not None:
            return self.first_seed
        return FIRST if self.suite is None else 0

    @property
    def first_tuning(self) -> int:
        if self.suite is None:
            return TUNING
        return self.first + max(self.episodes, *self.sizes.values(), 0)

    def condition(self, name: str) -> Condition:
        """A condition by name, with or without sensor noise as the study has it."""
        return condition(name, self.sensor_noise)

    def plan(self, where: Condition) -> EpisodePlan:
        """The episodes under a condition."""
        options = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(RunOptions)
        }
        if self.num_envs is None and self.suite is None:
            options["num_envs"] = LOCKSTEP
        episodes = self.sizes.get(where.name, self.episodes)
        return EpisodePlan(episodes=episodes, first_seed=self.first, **options, **where.plan)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a study found.

    Attributes:
        rows: one per arm and condition.
        best: the single remedy that did best when always on; None if no arm asked for it.
        targets: see `check_targets`.
        losses: condition -> link -> failures of the arm `mist`.
        preparation: whether the first prompt is kept in every arm.
        outcomes: condition -> arm -> episodes.
    """

    rows: list[Row]
    best: str | None
    targets: list[dict[str, Any]]
    losses: dict[str, dict[str, int]]
    preparation: bool
    outcomes: Mapping[str, Mapping[str, Outcomes]]

    def to_json(self) -> dict[str, Any]:
        """All but the episodes."""
        names = ("best", "targets", "losses", "preparation")
        rest = {name: getattr(self, name) for name in names}
        return {**rest, "rows": [row.to_json() for row in self.rows]}


def run_study(config: StudyPlan, log: Log = silent) -> Found:
    """Plays every arm under every condition, one condition after the other.

    Every arm is built before any is played, so that one that cannot be is known at once. `log` gets
    the success rate of each once it has been played.

    Raises:
        ValueError, FileNotFoundError, FingerprintError: see `make_arm`, `collect`.
    """
    bare = load_policy(config.policy, config.preset)
    subject = Subject(bare, config.mist, config.robust, config.robust_mist)
    where = [config.condition(name) for name in config.chosen_conditions]
    for arm in config.chosen_arms:
        if arm != BEST:
            made = make_arm(arm, subject, where[0].faults)
            if config.compiled:
                traceable(made)
    best = find_best(config, subject) if BEST in config.chosen_arms else None
    found: dict[str, dict[str, Outcomes]] = {}
    crashed: dict[str, dict[str, int]] = {}
    result = None
    for place in where:
        found[place.name], crashed[place.name] = {}, {}
        for arm in config.chosen_arms:
            arms = found[place.name]
            arms[arm], crashed[place.name][arm] = _play(
                config, subject, place, arm, best, arms.get("monitor", {})
            )
            result = _write(config, subject, found, crashed, best)
            row = next(r for r in result.rows if (r.condition, r.arm) == (place.name, arm))
            rate = row.successes / row.n if row.n else float("nan")
            log({f"{place.name}/{arm}/success": rate, f"{place.name}/{arm}/episodes": row.n}, 0)
    assert result is not None
    if config.videos:
        with tempfile.TemporaryDirectory() as folder:
            runs = _filmed_runs(config, where[0])
            shown = _episodes(config, subject, where[0], runs, Path(folder))
            videos = filmed(runs, where[0].name)
            write_page(config.out / PAGE, config, result, shown, videos)
    return result


def _filmed_runs(config: StudyPlan, place: Condition) -> dict[str, Run]:
    folders = {arm: config.out / place.name / arm for arm in config.chosen_arms}
    return {arm: load_run(folder) for arm, folder in folders.items() if folder.exists()}


def _episodes(
    config: StudyPlan,
    subject: Subject,
    place: Condition,
    runs: Mapping[str, Run],
    folder: Path,
) -> list[Section]:
    """Filmed episodes of all arms side by side, and the repairs of the arm `mist`."""
    sections = episodes(runs, folder)
    with_video = [
        seed for seed in config.plan(place).seeds() if "mist" in runs and runs["mist"].video(seed)
    ]
    repaired = (
        [row["seed"] for row in runs["mist"].finished if row["edited_inferences"]]
        if with_video
        else []
    )
    chosen = [seed for seed in with_video if seed in repaired][:SHOWN]
    if not chosen:
        return sections
    print("the same scenes without a fault:", flush=True)
    clean = collect(
        make_arm("bare", subject, config.condition("nominal").faults),
        config.out / "clean",
        dataclasses.replace(config.plan(config.condition("nominal")), videos=len(chosen)),
        env_options=subject.bare.preset.env_options,
        seeds=chosen,
    )
    policy = subject.kit.repaired(DECISIONS["mist"], "mist")
    plan = config.plan(place)
    batch = min(plan.batch_size, len(plan.seeds()))
    shown = []
    for seed in chosen:
        scene = clean.trace(seed)
        raws = [raw_observation(subject.bare, scene, i) for i in range(len(scene.chunks))]
        if repair := first_repair(policy, runs["mist"].trace(seed), batch):
            shown += blocks(repair, subject.bare, raws)
    return [*sections, Section("What was named, and what stood in for it", shown)]


def find_best(config: StudyPlan, subject: Subject) -> str:
    """The remedy with the most successes when always on alone, in the mixture on tuning seeds."""
    successes = {}
    for where in subject.inputs:
        arm = f"always_{where}"
        mixture = config.condition("mixture")
        plan = dataclasses.replace(
            config.plan(mixture),
            episodes=config.tuning,
            first_seed=config.first_tuning,
            videos=0,
        )
        policy = make_arm(arm, subject, mixture.faults)
        print(f"tuning, {arm}:", flush=True)
        run = collect(
            policy, config.out / "tuning" / arm, plan, env_options=subject.bare.preset.env_options
        )
        successes[where] = sum(bool(row["success"]) for row in run.finished)
    return max(successes, key=lambda where: successes[where])  # the first of equal ones


def _play(
    config: StudyPlan,
    subject: Subject,
    place: Condition,
    arm: str,
    best: str | None,
    watched: Outcomes,
) -> tuple[Outcomes, int]:
    """(the finished episodes of an arm, how many crashed).

    Args:
        config, subject, place, arm, best: what is played.
        watched: episodes of the arm `monitor`, which stand in for those in which this arm does
            nothing; {} plays all.
    """
    name = f"always_{best}" if arm == BEST else arm
    kept = {
        seed: {**row, "median_ms": None}
        for seed, row in watched.items()
        if find_arm(name).idle(subject, place.faults, seed, row["named_step"] is not None)
    }
    seeds = [seed for seed in config.plan(place).seeds() if seed not in kept]
    if not seeds:
        return kept, 0
    same = f", {len(kept)} more are those of monitor" if kept else ""
    print(f"{place.name}, {arm}: {len(seeds)} episodes{same}", flush=True)
    run = collect(
        make_arm(name, subject, place.faults),
        config.out / place.name / arm,
        config.plan(place),
        env_options=subject.bare.preset.env_options,
        seeds=seeds,
    )
    played = outcomes(run, seeds)
    return dict(sorted((kept | played).items())), len(seeds) - len(played)


def _write(
    config: StudyPlan,
    subject: Subject,
    found: Mapping[str, Mapping[str, Outcomes]],
    crashed: Mapping[str, Mapping[str, int]],
    best: str | None,
) -> Found:
    always = BEST if BEST in config.chosen_arms else None
    execute = subject.bare.spec.execute_steps
    result = Found(
        rows=[row for name in found for row in rows(name, found[name], crashed[name], always)],
        best=best,
        targets=[] if config.videos else check_targets(config.study.targets, found),
        losses={
            name: losses(arms["mist"], subject.inputs, execute)
            for name, arms in found.items()
            if "mist" in arms
        },
        preparation=LatchedPrompt.around(subject.bare, subject.bare) is not subject.bare,
        outcomes=found,
    )
    asked = {
        "study": config.name,
        "policy": subject.bare.spec.fingerprint,
        "episodes": config.episodes,
        "sizes": dict(config.sizes),
        "suite": config.suite,
        "tasks": list(config.tasks),
        "first_seed": config.first,
        "tuning_seeds": [config.first_tuning, config.tuning] if best else None,
        "sensor_noise": config.sensor_noise,
        "num_envs": config.plan(config.condition("nominal")).batch_size,
        "physics": config.physics if config.compiled else "mujoco",
    }
    about = {key: value for key, value in result.to_json().items() if key != "rows"}
    for name, document in (
        ("table.json", [row.to_json() for row in result.rows]),
        ("study.json", asked | about),
    ):
        with atomic(config.out / name) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")
    write_page(config.out / PAGE, config, result)
    return result
