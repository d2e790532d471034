"""Recorded runs in, a trained detector on disk out: `mistjax train-detector`.

An artefact knows which episodes trained it, so that calibration can refuse those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from mistjax.detect.artifact import Artifact, save_detector
from mistjax.detect.data import Episodes, split_seeds
from mistjax.detect.detector import score_episodes
from mistjax.detect.from_runs import (
    Group,
    Recorded,
    by_task,
    defined,
    executed_of,
    policy_of,
    read_runs,
    report_metrics,
)
from mistjax.detect.inputs import Input
from mistjax.detect.methods.sparse import SparseCoded, coded
from mistjax.detect.metrics import summary
from mistjax.detect.registry import DETECTORS, Networks, fit_detector, method
from mistjax.detect.sparse import load_sparse
from mistjax.rollouts.run import Run
from mistjax.tracking import Log, silent


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `train_detector` made.

    Attributes:
        name: key of `DETECTORS`.
        reads: what it reads.
        episodes, failures: of the training runs.
        held_out: mean metrics over folds that did not train the detector which scored them; empty
            where there are none.
        folds: how many were asked for.
        judged: how many had both outcomes on both sides.
        sparse: features of an autoencoder that stand for what it reads; 0 without one.
    """

    name: str
    reads: Input
    episodes: int
    failures: int
    held_out: Mapping[str, float]
    folds: int
    judged: int
    sparse: int = 0

    def describe(self) -> str:
        """What was made, and what each number is of."""
        made = (
            f"{self.name} ({DETECTORS[self.name].source}), fitted to {self.episodes} episodes, "
            f"{self.failures} of them failures. It reads {self.reads.describe()}"
            f"{f', as {self.sparse} sparse features' if self.sparse else ''}."
        )
        if self.held_out:
            numbers = report_metrics(self.held_out)
            judged = (
                f"Held out, not its own episodes ({self.judged} of {self.folds} folds by seed, "
                f"mean): {numbers}."
            )
        elif self.folds:
            judged = "Too few successes or failures to hold any out: how it ranks is not known."
        else:
            judged = "No episodes were held out: how it ranks is not known."
        live = self.reads.not_live
        recorded_only = f" It scores recorded episodes only: {live}." if live else ""
        return f"{made}{recorded_only}\n{judged}\nIt has no threshold yet, so it promises nothing."


def train_detector(
    runs: Sequence[Run],
    out: Path | str,
    *,
    name: str = "safe_mlp",
    features: Sequence[str] = (),
    pool: str = "mean",
    sae: Path | str | None = None,
    group: Group = by_task,
    folds: int = 3,
    seed: int = 0,
    epochs: int | None = None,
    networks: Networks = "small",
    progress: bool = False,
    log: Log = silent,
    **options: Any,
) -> Trained:
    """Fits a detector on every finished episode of the runs and writes it, without a threshold.

    Args:
        runs: of one policy, with what the detector reads.
        out: folder of the artefact.
        name: key of `DETECTORS`.
        features, pool: of hidden states, see `inputs.declare`.
        sae: folder of an autoencoder, whose features stand for the tokens of its tap, averaged over
            tokens and flow steps; in place of `features` and `pool`.
        group: tasks of similar length, for metrics by earliest stop.
        folds: in how many parts the episodes are divided, by seed, to judge detectors on episodes
            that did not train them; each costs a fit. 0 judges nothing.
        seed: of the folds and of what is drawn at random.
        epochs, networks: see `Method.options`.
        progress: show a bar over the fits.
        log: gets the loss of every epoch of a trained head, then the metrics over held-out folds.
        **options: further ones of the detector's fit.

    Raises:
        ValueError: an unknown detector, or one that cannot be made of these runs.
        FileNotFoundError, FingerprintError: see `load_sparse`.
    """
    if folds < 0 or folds == 1:
        raise ValueError(f"folds are {folds}: expected 0 for none, or at least 2.")
    record, fingerprint = method(name), policy_of(runs)
    coder = None
    if sae is not None:
        if record.parts != ("hidden",) or features or pool != "mean":
            raise ValueError(
                f"{name} with features {list(features)} pooled by {pool!r} and an autoencoder: one "
                "stands for the tokens of its own tap, in a detector that reads hidden states "
                "alone."
            )
        found = load_sparse(sae, fingerprint)
        coder, features, pool = found.coder, (str(found.tap),), "concat"
    empty = [str(run.path) for run in runs if not run.finished]
    if empty:
        raise ValueError(f"no finished episode in {', '.join(empty)}.")
    probes = [run.trace(run.finished[0]["seed"]) for run in runs]
    executed = executed_of(runs)
    try:
        reads = record.declare(probes, executed, features=features, pool=pool)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made of these runs: {error}") from None
    recorded = read_runs(runs, reads, group=group)
    _check_finite(recorded)
    episodes = recorded.episodes if coder is None else coded(recorded.episodes, coder)
    chosen = record.options(reads, executed, seed=seed, epochs=epochs, networks=networks) | options

    with tqdm(total=folds + 1, unit="fit", desc=name, disable=not progress) as bar:

        def fit(part: Episodes, **more: Any) -> Any:
            made = fit_detector(name, part, standardised=record.standardised, **chosen, **more)
            bar.update()
            return made

        detector = fit(episodes, **({"log": log} if record.training else {}))
        held_out, judged = cross_validate(fit, episodes, folds, seed)
    log({f"held_out/{name}": value for name, value in held_out.items()}, 0)
    failures = int((~episodes.success).sum())
    sparse = 0 if coder is None else coder.bias.size
    trained = Trained(name, reads, len(episodes), failures, held_out, folds, judged, sparse)
    about = {
        "runs": [str(run.path) for run in runs],
        "episodes": trained.episodes,
        "failures": trained.failures,
        "identities": list(recorded.identities),
        "held_out": defined(held_out),
        "folds": judged,
    }
    if coder is not None:
        detector, about["sae"] = SparseCoded(detector, coder), str(sae)
    save_detector(out, Artifact(detector, fingerprint, reads, name, training=about))
    return trained


def cross_validate(
    fit: Callable[[Episodes], Any], episodes: Episodes, folds: int, seed: int = 0
) -> tuple[dict[str, float], int]:
    """Mean metrics over folds of episodes that did not train the detector which scores them, and
    how many folds could be judged. All episodes of a seed are in the same fold.
    """
    found = []
    for held in split_seeds(episodes.seed, seed, fractions=[1 / folds] * folds) if folds else []:
        rest = np.setdiff1d(np.arange(len(episodes)), held)
        train, test = episodes.take(rest), episodes.take(held)
        if len(set(train.success)) < 2 or len(set(test.success)) < 2:
            continue
        try:
            scores = score_episodes(fit(train), test.features, test.mask)
        except ValueError:  # what is left is too little for this detector
            continue
        found.append(summary(np.asarray(scores), test))
    columns = {name: np.array([row[name] for row in found]) for name in found[0]} if found else {}
    means = {
        name: float(np.nanmean(column))
        for name, column in columns.items()
        if np.isfinite(column).any()
    }
    return means, len(found)


def _check_finite(recorded: Recorded) -> None:
    """ValueError names an episode of which a detector cannot learn."""
    broken = ~np.isfinite(np.asarray(recorded.episodes.features)).all((1, 2))
    if broken.any():
        raise ValueError(
            f"what the detector reads is not finite in {int(broken.sum())} episodes, such as "
            f"{recorded.names[int(np.argmax(broken))]}: leave those episodes out."
        )
