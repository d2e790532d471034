"""Subcommands that play, compare and export episodes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from mistjax.cli.telling import tell
from mistjax.files import refuse_file, refuse_folder
from mistjax.ranges import whole
from mistjax.rollouts.plan import EpisodePlan, RunOptions
from mistjax.tracking import Track, Trackers

if TYPE_CHECKING:
    from mistjax.rollouts.run import Run
    from mistjax.studies.run import Found


Plan = Annotated[EpisodePlan, tyro.conf.arg(name="")]  # their options have no prefix
Options = Annotated[RunOptions, tyro.conf.arg(name="")]


def demo(
    *,
    out: Path = Path("runs/demo"),
    episodes: int = 24,
    retry_errors: bool = False,
) -> int:
    """Play the shipped board policy while its inputs break: bare, every remedy always on, a wrong
    input repaired, and MIST; paired episodes, a table, and a page with videos.

    Args:
        out: folder of the runs; the page in it is report.html.
        episodes: paired episodes of each arm.
        retry_errors: rerun seeds that crashed in an earlier call.
    """
    from mistjax.demo import shipped_demo
    from mistjax.studies.run import run_study

    refuse_file(out)
    found = run_study(shipped_demo(out, episodes, retry_errors=retry_errors))
    return tell_study(found, out)


def tell_study(found: Found, out: Path) -> int:
    """Prints a study's tables, and what crashed; the exit code."""
    from mistjax.report.study import format_table
    from mistjax.studies.page import table_rows

    tell(out=out, page=out / "report.html", table=out / "table.json", rows=found.rows)
    for where in dict.fromkeys(row.condition for row in found.rows):
        print(f"\n{where}\n")
        print(format_table(table_rows([row for row in found.rows if row.condition == where])))
    print(f"\nTable: {out / 'table.json'}. Page: {out / 'report.html'}")
    crashed = sum(row.crashed for row in found.rows)
    if crashed:
        print(
            f"{crashed} episodes crashed and count in no rate; the same command with "
            "--retry-errors runs them again."
        )
    return int(crashed > 0)


def tell_crashes(runs: Mapping[str, Run]) -> int:
    """Says which episodes crashed; the exit code."""
    code = 0
    tell(runs={name: _row(run) for name, run in runs.items()})
    for name, run in runs.items():
        if run.crashed:
            seeds = ", ".join(map(str, run.crashed[:8])) + ", ..." * (len(run.crashed) > 8)
            print(
                f"{name}: {len(run.crashed)} of {len(run.rows)} episodes crashed (seeds {seeds}) "
                "and count in no rate; the same command with --retry-errors runs them again."
            )
            code = 1
    return code


def _row(run: Run) -> dict[str, Any]:
    from mistjax.rollouts.summary import summarize

    success = summarize(run).success
    return {
        "folder": run.path,
        "episodes": len(run.rows),
        "successes": success.k,
        "finished": success.n,
        "interval": success.interval,
        "crashed": run.crashed,
    }


def tell_unsound(runs: Mapping[str, Run]) -> None:
    """Says for each run whose inputs were watched what was named, with the sentence of the
    first.
    """
    from mistjax.report.unsound import said

    for name, run in runs.items():
        if run.config.get("inputs"):
            print(f"{name}: {said(run)}")


def collect(
    policy: Positional[str],
    /,
    *,
    out: Path,
    plan: Plan = EpisodePlan(),
    preset: str | None = None,
    unnorm_key: str | None = None,
    taps: tuple[str, ...] = (),
    samples: int = 1,
    inputs: bool = False,
    reckoned: Path | None = None,
    sensitivity: bool = False,
    velocity: bool = False,
    grounding: bool = False,
    steer: tuple[Path, str, float] | None = None,
    onset: int = 0,
) -> int:
    """Run a policy and record its episodes and activations.

    Args:
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        out: run folder; the same command resumes where it was interrupted.
        plan: which episodes, where, and how.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
        taps: activations to record, e.g. vlm.resid@-1/text/mean; by default those that detectors
            of hidden states read.
        samples: chunks drawn at each inference, for detectors of disagreement; 1 draws no others.
        sensitivity: also record how strongly a flow's velocity reacts, for sensitivity_gate.
        velocity: also record the velocity of every flow step, for velocity_disagreement.
        grounding: also record how a flow reacts to ablated evidence, for guard and guard_gate.
        inputs: also record what the policy reads, for `fit-inputs`.
        reckoned: folder of a monitor of inputs: the policy acts on the state that is reckoned with
            it and not on its sensor, for `fit-reckoning`.
        steer: folder of directions, name of one and strength: always on, without a monitor.
        onset: inferences of an episode before `steer` begins.
    """
    from mistjax.detect.inputs import DEFAULT_TAPS
    from mistjax.detect.novelty.reading import FIELDS, Reads
    from mistjax.hooks.sites import Tap
    from mistjax.policies.grounding import Grounded
    from mistjax.policies.load import load_policy
    from mistjax.policies.resampled import Resampled
    from mistjax.policies.sensitivity import Sensitive
    from mistjax.policies.wrapper import flow_of
    from mistjax.recover.reckoned import ReckonedPolicy
    from mistjax.rollouts.collect import collect
    from mistjax.rollouts.store import check_folder
    from mistjax.rollouts.summary import summarize
    from mistjax.steer.policy import load_steered

    wanted = tuple(Tap.parse(text) for text in taps) or DEFAULT_TAPS
    whole("samples", samples, 1)
    whole("onset", onset, 0)
    others = dict(steer=steer, sensitivity=sensitivity, velocity=velocity, grounding=grounding)
    if reckoned is not None and (also := [name for name, value in others.items() if value]):
        raise ValueError(
            f"reckoned and {', '.join(also)} were given: on a reckoned state episodes are recorded "
            "to fit the reckoning to, with inputs alone."
        )
    if reckoned is not None and not inputs:
        raise ValueError(
            "reckoned was given without inputs: there would be nothing to fit to, add --inputs."
        )
    check_folder(out)
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    env_options = bare.preset.env_options
    if steer is not None:
        bare = load_steered(bare, *steer, onset=onset)
    if reckoned is not None:
        bare = ReckonedPolicy.load(bare, reckoned)
    if sensitivity:
        bare = Sensitive(bare)
    if grounding:
        bare = Grounded(bare)
    if velocity:
        flow_of(bare)  # says what is wrong
    drawn = Resampled(bare, samples)
    run = collect(
        Reads(drawn) if inputs else drawn,
        out,
        plan,
        env_options=env_options,
        taps=wanted,
        aux=(*(FIELDS if inputs else ()), *(("velocity",) if velocity else ())),
    )
    then = f"mistjax train-detector {out} --out DETECTOR"
    if reckoned is not None:
        then = f"mistjax fit-reckoning CLEAN --reckoned {out} --policy {policy} --out {reckoned}"
    print(
        f"{out}: {len(run.rows)} episodes with {', '.join(map(str, wanted))}.\n"
        f"Success {summarize(run).success} of the finished ones, with its 95% Wilson interval.\n"
        f"Next: {then}"
    )
    tell_unsound({str(out): run})
    return tell_crashes({str(out): run})


def merge(runs: Positional[tuple[Path, ...]], /, *, out: Path) -> int:
    """Put the episodes of several runs of one configuration into one run folder.

    Args:
        runs: run folders, e.g. of tasks played side by side.
        out: run folder; the same command resumes where it was interrupted.
    """
    from mistjax.rollouts.merge import merge
    from mistjax.rollouts.run import load_run
    from mistjax.rollouts.summary import summarize

    run = merge([load_run(path) for path in runs], out)
    print(
        f"{out}: {len(run.rows)} episodes of {len(runs)} runs.\n"
        f"Success {summarize(run).success} of the finished ones, with its 95% Wilson interval."
    )
    return tell_crashes({str(out): run})


def memory(source: Positional[str], /, *, taps: tuple[str, ...] = (), batch: int = 1) -> None:
    """Say what recording activations would cost in memory, without loading or downloading anything.

    Args:
        source: checkpoint folder, or the name of a published checkpoint, e.g. pi05_libero.
        taps: activations, e.g. vlm.mlp_out@8/text/mean; by default those that `collect` records.
        batch: observations per inference.
    """
    from mistjax.detect.inputs import DEFAULT_TAPS
    from mistjax.hooks.sites import Tap
    from mistjax.policies.memory import config_of
    from mistjax.policies.memory import memory as memory_of

    chosen = [Tap.parse(text) for text in taps] or DEFAULT_TAPS
    whole("batch", batch, 1)
    print(memory_of(config_of(source), chosen, batch=batch).describe())
    print(
        f"That is for one inference of {batch} observations, as the compiler plans it; weights, "
        f"videos and the episodes' own arrays come on top.\n"
        f"Next: mistjax collect {source} --out RUN" + (f" --taps {' '.join(taps)}" if taps else "")
    )


def evaluate(
    checkpoint: Positional[str | None] = None,
    /,
    *,
    policy: str | None = None,
    out: Path,
    mist: Path | None = None,
    arms: tuple[str, ...] = ("bare",),
    stratum: str | None = None,
    mask_words: tuple[str, ...] = (),
    delay: int = 0,
    strategy: str | None = None,
    plan: Plan = EpisodePlan(),
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> int:
    """Measure the success of a policy, and of its monitored arms on the same seeds.

    Args:
        checkpoint: the same as --policy.
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        out: folder of the arms' runs and the report; the same command resumes there.
        mist: folder of a monitor and remedy, for the arms other than bare.
        arms: of bare, monitor, random, mist.
        stratum: which threshold of the monitor, where it has several.
        mask_words: further arms that cannot read some words, WORD,WORD each; * is a wildcard.
        delay: actions that the robot executes while an inference runs.
        strategy: which actions those are: wait, naive, ensemble, rtc, rtc_identity, rtc_closed,
            vlash, rail.
        plan: which episodes, where, and how.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.recover.study import StudyConfig
    from mistjax.report.study import run_study

    source = checkpoint or policy
    if source is None or (checkpoint and policy):
        raise ValueError("give one checkpoint: mistjax eval CHECKPOINT, or --policy CHECKPOINT.")
    refuse_file(out)
    runs = run_study(
        StudyConfig(
            policy=source,
            mist=mist,
            out=out,
            arms=arms,
            stratum=stratum,
            preset=preset,
            unnorm_key=unnorm_key,
            delay=whole("delay", delay, 0),
            strategy=strategy,
            title="mistjax eval",
            plan=plan,
            mask_words=mask_words,
        )
    )
    tell_unsound(runs)
    folders = " ".join(str(out / arm) for arm in runs)
    print(
        f"Next: mistjax report {folders}, or mistjax export-lerobot {out / arms[0]} --out DATASET"
    )
    return tell_crashes(runs)


def study(
    name: Positional[str],
    /,
    *,
    out: Path,
    episodes: int = 200,
    first_seed: int | None = None,
    policy: str | None = None,
    mist: Path | None = None,
    arms: tuple[str, ...] = (),
    conditions: tuple[str, ...] = (),
    sensor_noise: bool | None = None,
    robust: str | None = None,
    robust_mist: Path | None = None,
    tuning: int = 100,
    preset: str | None = None,
    options: Options = RunOptions(),
    track: Track = Trackers(),
) -> int:
    """Play a study by name: paired arms under faults, table.json and a page.

    Args:
        name: full_mist, baselines, steering_only or ablations.
        out: folder of the runs and the page; the same command resumes where it was interrupted.
        episodes: of each arm under each condition; with --suite, of each task.
        first_seed: of the episodes; with --suite, the first fixed start of each task.
        policy: a policy of your own in place of the shipped board policy.
        mist: folder of its monitor and remedies; needed with a policy of your own.
        arms: these arms in place of the study's, bare first, e.g. bare mist always_state.
        conditions: these conditions in place of the study's: nominal, mixture, unseen_strengths,
            unseen_kinds, a fault such as front_frozen or, with a strength, state_scaled_0.5, or a
            JSON file with a mixture.
        sensor_noise: whether cameras and state have ordinary noise; by default as a mixture in a
            file says, and with noise elsewhere.
        robust: a policy trained to cope without a camera, for the arms robust and robust_mist.
        robust_mist: folder of its monitor and remedies, for robust_mist.
        tuning: episodes of each remedy, on seeds of their own, to find the best one always on; with
            --suite, of each task.
        preset: robot preset; the checkpoint's own by default.
    """
    from mistjax.demo import MIST, POLICY
    from mistjax.studies.run import StudyPlan, run_study

    whole("tuning", tuning, 1)
    refuse_file(out)
    if policy is not None and mist is None:
        raise ValueError(
            f"a study of {policy} needs the folder of its monitor and remedies: --mist."
        )
    plan = StudyPlan(
        name,
        policy=POLICY if policy is None else policy,
        mist=MIST if mist is None else mist,
        robust=robust,
        robust_mist=robust_mist,
        out=out,
        episodes=episodes,
        first_seed=first_seed,
        arms=arms or None,
        conditions=conditions or None,
        sensor_noise=sensor_noise,
        tuning=tuning,
        preset=preset,
        **vars(options),
    )
    with track.open(out.name, {"study": name, "episodes": episodes}) as log:
        found = run_study(plan, log)
    return tell_study(found, out)


def report(
    baseline: Positional[Path],
    others: Positional[tuple[Path, ...]] = (),
    /,
    *,
    out: Path = Path("report.html"),
) -> None:
    """Write one HTML page about recorded runs.

    Args:
        baseline: a run folder.
        others: further run folders, compared with the baseline.
        out: the file to write.
    """
    from mistjax.report.build import build_report

    refuse_folder(out)
    folders = (baseline, *others)
    shared = os.path.commonpath([run.absolute().parent for run in folders])
    runs = {str(run.absolute().relative_to(shared)): run for run in folders}
    page = build_report(runs, out, title="mistjax report")
    tell(page=page)
    compared = f", each compared by seed with {baseline}" if others else ""
    print(f"{page}: {len(runs)} run{'s' * (len(runs) > 1)}{compared}; open it in a browser.")


def export_lerobot(
    run: Positional[Path],
    /,
    *,
    out: Path,
    pictures: bool = True,
    fps: float | None = None,
) -> None:
    """Write recorded episodes as a LeRobotDataset v3.0.

    Args:
        run: run folder.
        out: folder to write.
        pictures: export the episodes recorded as video, with pictures; otherwise all, without.
        fps: control rate in Hz; needed without pictures.
    """
    from mistjax.rollouts.formats.lerobot import export_lerobot
    from mistjax.rollouts.run import load_run

    done = export_lerobot(load_run(run), out, pictures=pictures, fps=fps)
    tell(out=out, episodes=done.episodes, frames=done.frames)
    left = f"; {done.without_video} without video left out" if done.without_video else ""
    print(
        f"{out}: {done.episodes} episodes, {done.frames} frames{left}.\n"
        "Pictures were compressed with H.264 once; crashed episodes are left out.\n"
        f'Next: lerobot.datasets.LeRobotDataset("NAME", root="{out}")'
    )


def export_rerun(
    run: Positional[Path],
    /,
    *,
    out: Path,
    seed: tuple[int, ...] = (),
    beside: Path | None = None,
) -> None:
    """Write recorded episodes for the Rerun viewer: cameras, scores, alarms, actions, explanations.

    Args:
        run: run folder.
        out: folder to write, one .rrd file per episode.
        seed: which episodes; those with pictures by default.
        beside: a run on the same seeds, such as the arm bare, whose actions are drawn beside.
    """
    from mistjax.report.rerun import export_rerun
    from mistjax.rollouts.run import load_run

    other = None if beside is None else load_run(beside)
    done = export_rerun(load_run(run), out, seed, beside=other)
    tell(files=done.files)
    left = f", {done.without_pictures} of them without pictures" if done.without_pictures else ""
    print(f"{out}: {len(done.files)} episodes{left}.\nNext: rerun {out}/*.rrd")
