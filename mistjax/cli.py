"""The `mistjax` command: argument parsing, and one call for each subcommand.

What the library refuses (ValueError, a missing file, a missing extra) is printed as one sentence,
exit code 2. `python -X dev -m mistjax.cli ...` shows the traceback instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
        videos: how many of the first episodes to record as video.
    """
    from mistjax.detect.features import DEFAULT_FEATURES
    from mistjax.hooks.sites import Tap
    from mistjax.rollouts.collect import collect, load_policy
    from mistjax.rollouts.summary import summarize

    run = collect(
        load_policy(policy, preset),
        out,
        episodes=episodes,
        first_seed=first_seed,
        env=env,
        perturbation=perturbation,
        taps=[Tap.parse(text) for text in taps] or DEFAULT_FEATURES.taps,
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
        out: page to write.
        preset: robot preset.
    """
    from mistjax.recover.explanation import explain_episode
    from mistjax.rollouts.collect import load_policy
    from mistjax.rollouts.run import load_run

    bare = load_policy(policy, preset)
    print(explain_episode(bare, detector, load_run(run), seed, out, inference, method))


def evaluate(
    policy: Positional[Path],
    /,
    *,
    out: Path,
    mist: Path | None = None,
    arms: tuple[str, ...] = ("bare",),
    episodes: int = 50,
    first_seed: int = 0,
    perturbation: dict[str, float] | None = None,
    env: str = "mistjax/Board-v0",
    preset: str = "board",
    videos: int = 0,
) -> None:
    """Success of a policy, and of its monitored arms on the same seeds.

    Args:
        policy: checkpoint folder.
        out: folder of the arms' runs and the report page.
        mist: folder of a monitor and remedy, for the arms other than bare.
        arms: of bare, monitor, random, mist.
        episodes: how many, of consecutive seeds.
        first_seed: the first seed.
        perturbation: what is changed in the environment, e.g. `camera_angle 0.5`.
        env: gymnasium id.
        preset: robot preset.
        videos: how many of the first episodes to record as video.
    """
    from mistjax.recover.study import StudyConfig, run_study

    run_study(
        StudyConfig(
            policy=policy,
            mist=mist,
            out=out,
            arms=arms,
            episodes=episodes,
            first_seed=first_seed,
            perturbation=perturbation or {},
            env=env,
            preset=preset,
            videos=videos,
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
    "vectors": vectors,
    "explain": explain,
    "eval": evaluate,
    "report": report,
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
    except (ValueError, FileNotFoundError, ImportError) as error:
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
