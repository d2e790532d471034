"""Subcommands on failure detectors: fit, calibrate, compare, exchange with SAFE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from mistjax.cli.telling import tell
from mistjax.files import refuse_file
from mistjax.ranges import between
from mistjax.tracking import Track, Trackers


def train_detector(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path,
    detector: str = "safe_mlp",
    features: tuple[str, ...] = (),
    pool: str = "mean",
    steps: Literal["first", "last", "mean", "concat"] | None = None,
    sae: Path | None = None,
    group: str | None = None,
    folds: int = 3,
    seed: int = 0,
    epochs: int | None = None,
    networks: Literal["small", "source"] = "small",
    track: Track = Trackers(),
) -> None:
    """Fit a failure detector to recorded runs.

    Args:
        runs: run folders of one policy.
        out: folder to write the detector to.
        detector: name in the registry, e.g. safe_mlp, safe_lstm, cosine_knn, stac.
        features: recorded features that a detector of hidden states reads, e.g.
            action.resid@-1/action/mean; by default those that `collect` records by default.
        pool: how their tokens and flow steps are pooled, e.g. mean, 1.0 (the last), concat-2.
        steps: former name of --pool.
        sae: folder of train-sae, whose sparse features are read in place of --features.
        group: key of a JSON task: metrics compare episodes with the same value.
        folds: of a cross-validation, which says how well such a detector ranks; each costs a fit, 0
            skips it.
        seed: of the folds and of training.
        epochs: of a trained head; the source's 1000 if left out.
        networks: "source" gives RND, logpZO, RND-OE and FIPER their original size (hours on a CPU).
    """
    from mistjax.detect.from_runs import task_group
    from mistjax.detect.inputs import OLD_STEPS
    from mistjax.detect.training import train_detector
    from mistjax.rollouts.run import load_run

    if steps is not None:
        pool = OLD_STEPS[steps]
        print(f"mistjax: --steps {steps} is now --pool {pool}", file=sys.stderr)
    refuse_file(out)
    settings = {"detector": detector, "runs": [str(run) for run in runs], "seed": seed}
    with track.open(out.name, settings) as log:
        trained = train_detector(
            [load_run(run) for run in runs],
            out,
            name=detector,
            features=features,
            pool=pool,
            sae=sae,
            group=lambda trace: task_group(trace, group),
            folds=folds,
            seed=seed,
            epochs=epochs,
            networks=networks,
            progress=True,
            log=log,
        )
    tell(
        out=out,
        episodes=trained.episodes,
        failures=trained.failures,
        held_out=dict(trained.held_out),
    )
    print(trained.describe())
    print(
        f"Written to {out}. Next, with runs of the same policy on other seeds:\n"
        f"  mistjax calibrate RUNS --detector {out} --alpha 0.1"
    )


def calibrate(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    detector: Path,
    alpha: float = 0.1,
    confidence: float | None = None,
    band: Literal["constant", "stdev", "tfunc"] = "stdev",
    strata: str | None = None,
    group: str | None = None,
    seed: int = 0,
) -> None:
    """Set a detector's threshold from the successes of runs that did not train it.

    Args:
        runs: run folders of the same policy.
        detector: what train-detector wrote.
        alpha: bound on the chance of any alarm in a successful episode.
        confidence: share of calibrations for which the bound holds, e.g. 0.95; by default it holds
            on average over calibrations, so that nearly half of them exceed it.
        band: shape of the threshold over time: one number, or two kinds of functional conformal
            band.
        strata: one threshold for each value of this key: a setting of the run such as `suite`, a
            key of a JSON task, or `task`. `eval --stratum` then chooses one.
        group: key of a JSON task: metrics compare episodes with the same value.
        seed: decides which successes give the band its shape.
    """
    from mistjax.detect.artifact import read_card
    from mistjax.detect.calibration.runs import calibrate_detector
    from mistjax.detect.from_runs import task_group
    from mistjax.detect.inputs import Input
    from mistjax.rollouts.run import load_run

    found = calibrate_detector(
        detector,
        [load_run(run) for run in runs],
        alpha=alpha,
        confidence=confidence,
        band=band,
        strata=strata,
        group=lambda trace: task_group(trace, group),
        seed=seed,
    )
    tell(
        detector=detector,
        episodes=found.episodes,
        failures=found.failures,
        metrics=dict(found.metrics),
        thresholds={
            stratum: {
                "alpha": threshold.alpha,
                "successes": threshold.n_calibration,
                "rank": threshold.rank,
                "finite": threshold.rank <= threshold.n_calibration,
            }
            for stratum, threshold in found.thresholds.items()
        },
    )
    print(found.describe())
    if why := Input.from_json(read_card(detector)["reads"]).not_live:
        print(f"Written to {detector}. It cannot run beside a policy: {why}.")
        return
    stratum = f" --stratum {next(iter(found.thresholds))}" if strata else ""
    print(
        f"Written to {detector}. Next, on seeds that are new to it:\n"
        f"  mistjax eval POLICY --mist {detector} --arms bare monitor{stratum} --out runs/study "
        "--first-seed N"
    )


def fit_inputs(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    policy: str,
    calibration: tuple[Path, ...],
    out: Path,
    preset: str | None = None,
    unnorm_key: str | None = None,
    alpha: float = 0.1,
    confidence: float | None = 0.95,
) -> None:
    """Fit a monitor of a policy's inputs to clean runs, and calibrate it on other clean runs.

    Args:
        runs: run folders of clean episodes, recorded with `collect --inputs`; no faulty ones.
        policy: the recorded one: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT.
        calibration: run folders of further clean episodes.
        out: folder to write to: a failure monitor's, or a new one.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
        alpha: bound on the chance of any alarm in a clean episode.
        confidence: share of calibrations for which the bound holds; None bounds their average.
    """
    between("alpha", alpha, 0, 1)
    if confidence is not None:
        between("confidence", confidence, 0, 1)
    refuse_file(out)
    from mistjax.detect.novelty.build import build_inputs
    from mistjax.policies.load import load_policy
    from mistjax.rollouts.run import load_run

    monitor = build_inputs(
        load_policy(policy, preset, unnorm_key=unnorm_key),
        [load_run(run) for run in runs],
        [load_run(run) for run in calibration],
        out,
        alpha=alpha,
        confidence=confidence,
    )
    print(monitor.threshold.describe("clean"))
    print(f"Inputs: {', '.join(monitor.inputs)}. Now: mistjax eval {policy} --mist {out} ...")


def drift(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    detector: Path,
    stratum: str | None = None,
    delta: float = 0.01,
) -> int:
    """Say whether a calibration still holds for runs recorded since. Exit code 1 if it is stale.

    Args:
        runs: run folders of the bare policy, oldest first.
        detector: a calibrated detector.
        stratum: which of its thresholds, where it has several.
        delta: bound on the chance of ever calling a good calibration stale.
    """
    from mistjax.detect.calibration.drift import check_drift
    from mistjax.rollouts.run import load_run

    found = check_drift(detector, [load_run(run) for run in runs], stratum=stratum, delta=delta)
    tell(stale=found.monitor.stale, successes=found.false_alarms.n)
    print(f"{found.false_alarms.n} successes compared with the calibration of {detector}.")
    print(found.describe())
    if found.monitor.stale:
        print(f"Next: mistjax calibrate NEW_RUNS --detector {detector}")
    return int(found.monitor.stale)


def detect_bench(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path = Path("runs/detect_bench"),
    train: tuple[Path, ...] = (),
    features: tuple[str, ...] = (),
    pool: str = "mean",
    group: str | None = None,
    detectors: tuple[str, ...] = (),
    seed: int = 0,
    alpha: float = 0.1,
    band: Literal["constant", "stdev", "tfunc"] = "stdev",
    epochs: int | None = None,
    networks: Literal["small", "source"] = "small",
) -> None:
    """Compare every applicable failure detector on recorded runs, offline.

    Args:
        runs: run folders of one policy, split by seed into training, calibration and test.
        out: folder of the table and the page; the same command resumes where it was interrupted.
        train: run folders to train on; RUNS are then held out entirely.
        features: recorded features that detectors of hidden states read; by default those that
            `collect` records by default.
        pool: how their tokens and flow steps are pooled, e.g. mean, 1.0, concat-2.
        group: key of a JSON task: episodes with the same value count as one task.
        detectors: only these.
        seed: of the split and of training.
        alpha: bound on the chance of any alarm in a success.
        band: shape of the thresholds over time, see `calibrate`.
        epochs: of the trained heads; the source's 1000 if left out.
        networks: "source" gives RND, logpZO, RND-OE and FIPER their original size (hours on a CPU).
    """
    from mistjax.detect.bench.config import BenchConfig
    from mistjax.detect.bench.run import run_bench
    from mistjax.detect.bench.table import scored, text_table
    from mistjax.report.bench import write_page

    config = BenchConfig(
        runs=runs,
        out=out,
        train=train,
        features=features,
        pool=pool,
        group=group,
        detectors=detectors,
        seed=seed,
        alpha=alpha,
        band=band,
        epochs=epochs,
        networks=networks,
    )
    rows = run_bench(config, write_page=write_page)
    tell(page=out / "bench.html", rows=[*rows])
    print(
        f"{text_table(rows)}\n\nAll on test episodes; none of them trained or calibrated anything."
    )
    print(f"Page: {out / 'bench.html'}")
    if best := next((row["name"] for row in scored(rows) if not row["control"]), None):
        print(f"Next: mistjax train-detector RUNS --detector {best} --out runs/monitor")


def import_safe(
    folder: Positional[Path],
    /,
    *,
    out: Path,
    policy: str | None = None,
    pool: tuple[str, ...] = (),
) -> None:
    """Turn rollouts in SAFE's format (pickle files) into a run folder.

    Args:
        folder: rollouts of OpenVLA, pi0 or pi0-FAST, as SAFE's loaders expect them.
        out: run folder to write.
        policy: name of the policy that made them.
        pool: how hidden states are pooled, innermost axis first, e.g. `mean mean`; by default every
            pooling is kept.
    """
    from mistjax.hooks.pooling import parse_pool
    from mistjax.rollouts.formats.safe import import_safe
    from mistjax.rollouts.formats.safe.reading import find_layout
    from mistjax.rollouts.store import check_folder
    from mistjax.rollouts.summary import summarize

    find_layout(folder)  # what can be refused without reading a pickle is
    for command in pool:
        parse_pool(command)
    check_folder(out)
    run = import_safe(folder, out, policy=policy, pool=pool)
    print(
        f"{out}: {len(run.rows)} episodes, success {summarize(run).success} as their files say it, "
        f"with its 95% Wilson interval.\nNext: mistjax train-detector {out} --out DETECTOR, with "
        f"--features of {', '.join(sorted(next(run.traces()).features))}"
    )


def export_safe(
    run: Positional[Path],
    /,
    *,
    out: Path,
    feature: str,
    layout: Literal["pi0", "openvla"] = "pi0",
) -> None:
    """Write a run's episodes in SAFE's format (pickle files).

    Args:
        run: run folder.
        out: folder to write.
        feature: recorded feature that becomes the hidden states, e.g.
            action.resid@-1/action/tokens.
        layout: of the files.
    """
    from mistjax.rollouts.formats.safe import export_safe
    from mistjax.rollouts.run import load_run

    recorded = load_run(run)
    if not recorded.finished:
        raise ValueError(f"{run} has no finished episode: there is nothing to export.")
    first = recorded.trace(recorded.finished[0]["seed"])
    if feature not in first.features:
        raise ValueError(f"{feature!r} was not recorded in {run}: it has {sorted(first.features)}.")
    refuse_file(out)
    folder = export_safe(run, out, feature=feature, layout=layout)
    print(
        f"{folder}: {len(recorded.finished)} finished episodes in SAFE's {layout} layout, as "
        "pickle files for its own loaders; crashed ones are not among them."
    )
