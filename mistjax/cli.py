"""The `mistjax` command: argument parsing, and one call for each subcommand.

What the library refuses (ValueError, a missing file or extra, a broken connection) is printed as
one sentence, exit code 2. `python -X dev -m mistjax.cli ...` shows the traceback instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional


def doctor() -> None:
    """Say what works on this machine, and the command that fixes what does not."""
    from mistjax.doctor import examine, table

    print(table(examine()))


def conformance(
    file: Positional[Path | None] = None,
    /,
    *,
    safe: Path | None = None,
    openvla: Path | None = None,
    atol: float = 2e-5,
    record: Path | None = None,
) -> int:
    """Compare recorded outputs of a model with what this code computes.

    Give FILE.npz, or a folder of outputs of an original implementation. Exit code 1 when an output
    is off by more than the tolerance.

    Args:
        file: recorded arrays; the model's sizes lie beside it as FILE.json.
        safe: folder of outputs of SAFE and FIPER.
        openvla: folder of outputs of OpenVLA.
        atol: largest absolute error of FILE that passes.
        record: a checkpoint folder: write FILE from it first.
    """
    from mistjax.conformance.originals import compare

    return compare(file, safe, openvla, atol=atol, record_from=record)


def demo(
    *,
    out: Path = Path("runs/demo"),
    episodes: int = 24,
    perturbation: dict[str, float] | None = None,
) -> None:
    """The whole path on the shipped board policy: four paired arms, a table, a report page.

    Args:
        out: run folder; the page is report.html in it.
        episodes: paired episodes of each arm.
        perturbation: what is changed in the environment, e.g. `camera_angle 0.5`.
    """
    from mistjax.demo import shipped_study
    from mistjax.recover.study import run_study

    run_study(
        shipped_study(
            out=out,
            episodes=episodes,
            first_seed=5_000_000,
            title="mistjax demo",
            perturbation=perturbation,
        )
    )


def collect(
    policy: Positional[Path],
    /,
    *,
    out: Path,
    episodes: int = 100,
    first_seed: int = 0,
    perturbation: dict[str, float] | None = None,
    env: str = "mistjax/Board-v0",
    preset: str = "board",
    taps: tuple[str, ...] = (),
    samples: int = 1,
    steer: tuple[Path, str, float] | None = None,
    onset: int = 0,
    videos: int = 0,
) -> None:
    """Run a policy and record its episodes and activations.

    Args:
        policy: checkpoint folder.
        out: run folder; the same command goes on where it was interrupted.
        episodes: how many, of consecutive seeds.
        first_seed: the first seed.
        perturbation: what is changed in the environment, e.g. `camera_angle 0.5`.
        env: gymnasium id.
        preset: robot preset.
        taps: activations to record, e.g. vlm.resid@-1/text/mean; the detector's own by default.
        samples: chunks drawn at each inference, for detectors of disagreement; 1 draws no others.
        steer: folder of directions, the name of one and its strength: always in force, no monitor.
        onset: inferences of an episode before `steer`.
        videos: how many of the first episodes to record as video.
    """
    from mistjax.detect.features import DEFAULT_FEATURES
    from mistjax.detect.resampled import Resampled
    from mistjax.hooks.sites import Tap
    from mistjax.rollouts.collect import collect, load_policy
    from mistjax.rollouts.summary import summarize
    from mistjax.steer.policy import load_steered

    bare = load_policy(policy, preset)
    if steer is not None:
        bare = load_steered(bare, *steer, onset=onset)
    run = collect(
        bare if samples == 1 else Resampled(bare, samples),
        out,
        episodes=episodes,
        first_seed=first_seed,
        env=env,
        perturbation=perturbation,
        taps=[Tap.parse(text) for text in taps] or DEFAULT_FEATURES.taps,
        aux=() if samples == 1 else ("sampled_actions",),
        videos=videos,
    )
    print(f"success {summarize(run).success}; recorded in {out}")


def train_detector(
    runs: Positional[tuple[Path, ...]], /, *, out: Path, detector: str = "safe_mlp"
) -> None:
    """Fit a failure detector to recorded runs.

    Args:
        runs: run folders of one policy.
        out: folder to write the detector to.
        detector: name in the registry, e.g. safe_mlp, safe_lstm, cosine_knn.
    """
    from mistjax.detect.from_runs import report_metrics, train_detector
    from mistjax.rollouts.run import load_run

    print(report_metrics(train_detector([load_run(r) for r in runs], out, name=detector)))


def calibrate(runs: Positional[tuple[Path, ...]], /, *, detector: Path, alpha: float = 0.1) -> None:
    """Set a detector's threshold from the successes of runs that did not train it.

    Args:
        runs: run folders of the same policy.
        detector: what train-detector wrote.
        alpha: bound on the chance of any alarm in a successful episode.
    """
    from mistjax.detect.from_runs import calibrate_detector, report_metrics
    from mistjax.rollouts.run import load_run

    threshold, metrics = calibrate_detector(detector, [load_run(r) for r in runs], alpha=alpha)
    print(f"{threshold.describe()}\n{report_metrics(metrics)}")


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
    epochs: int | None = None,
    networks: Literal["small", "source"] = "small",
) -> None:
    """Compare every applicable failure detector on recorded runs, offline.

    Args:
        runs: run folders of one policy, divided by seed into training, calibration and test.
        out: folder of the table and the page; the same command goes on where it was interrupted.
        train: run folders to train on; RUNS are then held out whole.
        features: recorded features that detectors of hidden states read; the default ones if left
            out.
        pool: how their tokens and flow steps are pooled, e.g. mean, 1.0, concat-2.
        group: key of a JSON task: episodes with the same value count as one task.
        detectors: only these rows.
        seed: of the split and of training.
        alpha: bound on the chance of any alarm in a success.
        epochs: of the trained heads; the source's 1000 if left out.
        networks: "source" gives RND, logpZO, RND-OE and FIPER their original size (hours on a CPU).
    """
    from mistjax.detect.bench.config import BenchConfig
    from mistjax.detect.bench.run import report

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
        epochs=epochs,
        networks=networks,
    )
    print(report(config))


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
        pool: how hidden states are pooled, innermost axis first, e.g. `mean mean`; all if left out.
    """
    from mistjax.detect.safe_rollouts import import_safe
    from mistjax.rollouts.summary import summarize

    run = import_safe(folder, out, policy=policy, pool=pool)
    print(f"{len(run.rows)} episodes, success {summarize(run).success}; imported into {out}")


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
    from mistjax.detect.safe_rollouts import export_safe

    print(export_safe(run, out, feature=feature, layout=layout))


def vectors(
    policy: Positional[Path],
    /,
    *,
    out: Path,
    run: Path | None = None,
    concepts: dict[str, str] | None = None,
    preset: str = "board",
) -> None:
    """Build steering vectors: from words, and from failure to success in a recorded run.

    Args:
        policy: checkpoint folder.
        out: folder to write them to.
        run: run folder of the policy.
        concepts: name and its words, comma-separated; the board's own by default.
        preset: robot preset.
    """
    from mistjax.rollouts.collect import load_policy
    from mistjax.steer.build import write_vectors

    words = concepts and {name: text.split(",") for name, text in concepts.items()}
    print(write_vectors(load_policy(policy, preset), out, concepts=words, run=run))


def explain(
    run: Positional[Path],
    /,
    *,
    policy: Path,
    detector: Path,
    seed: int,
    inference: int | None = None,
    method: str = "integrated_gradients",
    memory: int | None = None,
    out: Path = Path("explanation.html"),
    preset: str = "board",
) -> None:
    """Say what the failure score of a recorded episode relies on, in a sentence and pictures.

    Args:
        run: run folder with the episode, recorded as video.
        policy: checkpoint folder.
        detector: a calibrated detector.
        seed: which episode.
        inference: which inference; the first alarm by default, else the highest score.
        method: integrated_gradients, gradient_x_input, saliency, occlusion or iss.
        memory: MiB of temporary memory to stay within; 8 runs at a time by default.
        out: page to write.
        preset: robot preset.
    """
    from mistjax.recover.explanation import explain_episode
    from mistjax.rollouts.collect import load_policy
    from mistjax.rollouts.run import load_run

    bare = load_policy(policy, preset)
    budget = None if memory is None else memory * 2**20
    print(explain_episode(bare, detector, load_run(run), seed, out, inference, method, budget))


def evaluate(
    checkpoint: Positional[str | None] = None,
    /,
    *,
    policy: str | None = None,
    out: Path,
    mist: Path | None = None,
    arms: tuple[str, ...] = ("bare",),
    episodes: int = 50,
    first_seed: int = 0,
    perturbation: dict[str, float] | None = None,
    env: str = "mistjax/Board-v0",
    suite: str | None = None,
    preset: str | None = None,
    videos: int = 0,
    workers: int = 0,
    num_envs: int | None = None,
    executor: Literal["process", "ray"] = "process",
) -> None:
    """Success of a policy, and of its monitored arms on the same seeds.

    Args:
        checkpoint: the same as --policy.
        policy: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT.
        out: folder of the arms' runs and the report page; the same command goes on there.
        mist: folder of a monitor and remedy, for the arms other than bare.
        arms: of bare, monitor, random, mist.
        episodes: how many, of consecutive seeds; with --suite, of each task.
        first_seed: the first seed; with --suite, the first fixed start of each task.
        perturbation: what is changed in the environment, e.g. `camera_angle 0.5`.
        env: gymnasium id.
        suite: a LIBERO suite in place of --env, e.g. libero_spatial.
        preset: robot preset; the checkpoint's own name by default, else board.
        videos: how many of the first episodes to record as video.
        workers: processes that step the environments; 0 is this one.
        num_envs: environments in lock-step; 8 by default, with --suite one a worker.
        executor: whether workers are processes of this machine or Ray actors.
    """
    from mistjax.policies.presets import preset_of
    from mistjax.recover.study import StudyConfig, run_study

    source = checkpoint or policy
    if source is None or (checkpoint and policy):
        raise ValueError("give one checkpoint: mistjax eval CHECKPOINT, or --policy CHECKPOINT.")
    run_study(
        StudyConfig(
            policy=source,
            mist=mist,
            out=out,
            arms=arms,
            episodes=episodes,
            first_seed=first_seed,
            perturbation=perturbation or {},
            env=env,
            suite=suite,
            preset=preset or preset_of(source),
            videos=videos,
            workers=workers,
            num_envs=num_envs,
            executor=executor,
        )
    )


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
        others: further run folders, compared with the first.
        out: the file to write.
    """
    from mistjax.report.build import build_report

    runs = {str(run): run for run in (baseline, *others)}
    print(build_report(runs, out, title="mistjax report"))


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
        pictures: only the episodes that were recorded as video, with pictures; else all, without.
        fps: control rate in Hz; needed without pictures.
    """
    from mistjax.rollouts.lerobot import export_lerobot
    from mistjax.rollouts.run import load_run

    done = export_lerobot(load_run(run), out, pictures=pictures, fps=fps)
    left = f"; {done.without_video} without video left out" if done.without_video else ""
    print(f"{done.episodes} episodes, {done.frames} frames in {out}{left}")


def fetch(source: Positional[str], /) -> None:
    """Download a published checkpoint and print its folder; an interrupted download goes on.

    Args:
        source: gs://BUCKET/PATH, or hf://OWNER/REPOSITORY@COMMIT with a folder after it if wanted.
    """
    from mistjax.models.sources import fetch

    print(fetch(source))


def cite(room: Positional[str | None] = None) -> None:
    """Print BibTeX of mistjax and of the works behind it.

    Args:
        room: only those behind one part of the library, e.g. detect.
    """
    from mistjax.citations import citation

    print(citation(room))


COMMANDS: dict[str, Callable[..., int | None]] = {
    "demo": demo,
    "collect": collect,
    "train-detector": train_detector,
    "calibrate": calibrate,
    "detect-bench": detect_bench,
    "import-safe": import_safe,
    "export-safe": export_safe,
    "vectors": vectors,
    "explain": explain,
    "eval": evaluate,
    "report": report,
    "export-lerobot": export_lerobot,
    "fetch": fetch,
    "conformance": conformance,
    "doctor": doctor,
    "cite": cite,
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit code."""
    from mistjax.compilation import enable_cache

    enable_cache()
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="mistjax",
            description="Watch, explain and steer robot policies.",
            args=args,
        )
    except (ValueError, FileNotFoundError, ConnectionError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"mistjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mistjax: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
