"""Subcommands on failure detectors: fit, calibrate, compare, exchange with SAFE."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import Positional


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
