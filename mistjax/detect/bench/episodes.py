"""Recorded runs as the inputs of all detectors, divided by seed.

Traces are read once. Memory: what the detectors read, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from mistjax.detect.bench.config import BenchConfig
from mistjax.detect.bench.inputs import Case, cases
from mistjax.detect.data import Episodes, split_seeds
from mistjax.detect.from_runs import executed_of, identity, task_group
from mistjax.detect.inputs import Input
from mistjax.rollouts.run import load_run
from mistjax.rollouts.trace import Trace


class Split(NamedTuple):
    """Episode indices: fitted on, threshold set on, judged on."""

    train: np.ndarray
    calibration: np.ndarray
    test: np.ndarray


class Recorded(NamedTuple):
    """Everything read from the runs.

    Attributes:
        cases: rows of the table.
        inputs: input -> one [steps, d] array per episode.
        success, task, seed: of each episode.
        onset: inference of each at which a fault began; -1 for none.
        split: of the episodes.
        about: what was read, JSON types only.
    """

    cases: list[Case]
    inputs: Mapping[Input, list[np.ndarray]]
    success: np.ndarray
    task: np.ndarray
    seed: np.ndarray
    onset: np.ndarray
    split: Split
    about: dict[str, Any]

    def episodes(self, reads: Input) -> Episodes:
        """All episodes with one input; earliest stops are over all of them."""
        return Episodes.from_sequences(self.inputs[reads], self.success, self.task, self.seed)


def read_runs(config: BenchConfig, *, progress: bool = True) -> Recorded:
    """Reads the runs of a configuration.

    Raises:
        ValueError: runs of several policies, a run without a finished episode, an episode twice,
            seeds on both sides of the split, or a part without what it needs.
    """
    held, train = ([load_run(path) for path in paths] for paths in (config.runs, config.train))
    runs = [*train, *held]
    fingerprints = sorted({str(run.config["policy_fingerprint"]) for run in runs})
    empty = [str(run.path) for run in runs if not run.finished]
    if len(fingerprints) != 1 or empty:
        raise ValueError(
            f"got runs of {len(fingerprints)} policies, and no finished episode in {empty}: give "
            "run folders of one policy, each with episodes."
        )
    probes = [run.trace(run.finished[0]["seed"]) for run in runs]
    rows = cases(probes, executed_of(runs), config)
    inputs: dict[Input, list[np.ndarray]] = {row.reads: [] for row in rows if row.reads}
    success, groups, seeds, training, onset, known = [], [], [], [], [], set()
    total = sum(len(run.finished) for run in runs)
    with tqdm(total=total, unit="ep", desc="reading", disable=None if progress else True) as bar:
        for number, run in enumerate(runs):
            for trace in run.traces():
                if (episode := identity(trace)) in known:
                    raise ValueError(
                        f"seed {trace.seed} of {run.path} is given twice: give each episode once."
                    )
                known.add(episode)
                for reads, values in inputs.items():
                    values.append(reads.recorded(trace))
                onset.append(onset_of(trace))
                success.append(trace.success)
                groups.append(task_group(trace, config.group))
                seeds.append(trace.seed)
                training.append(number < len(train))
                bar.update()
    names = sorted(set(groups))
    task = np.array([names.index(group) for group in groups])
    split = divide(np.array(seeds), np.array(training), config)
    _check(split, np.array(success, bool))
    about = {
        "policy": runs[0].config["policy"],
        "policy_fingerprint": fingerprints[0],
        "hidden": sorted({name for reads in inputs for name in reads.features}),
        "tasks": len(names),
        "episodes": {str(run.path): len(run.finished) for run in runs},
        "split": {
            part: {"episodes": len(index), "failures": int((~np.array(success, bool)[index]).sum())}
            for part, index in split._asdict().items()
        },
    }
    return Recorded(
        rows,
        inputs,
        np.array(success, bool),
        task,
        np.array(seeds),
        np.array(onset),
        split,
        about,
    )


def onset_of(trace: Trace) -> int:
    """The first inference that a fault could show in, by `info["fault_onset"]`; -1 for none."""
    step = trace.info.get("fault_onset")
    if step is None:
        return -1
    later = np.flatnonzero(np.asarray(trace.inference_step) >= step)
    return int(later[0]) if len(later) else -1


def divide(seeds: np.ndarray, training: np.ndarray, config: BenchConfig) -> Split:
    """Training, calibration and test; episodes of one environment seed stay together."""
    if not training.any():
        return Split(*split_seeds(seeds, config.seed, fractions=config.fractions))
    held = np.flatnonzero(~training)
    shared = np.intersect1d(seeds[training], seeds[held])
    if len(shared):
        raise ValueError(
            f"{len(shared)} seeds, such as {shared[0]}, are in the training and in the held-out "
            "runs: record the held-out ones on seeds of their own."
        )
    rest = config.fractions[1:]
    shares = [part / sum(rest) for part in rest]
    parts = split_seeds(seeds[held], config.seed, fractions=shares)
    return Split(np.flatnonzero(training), held[parts[0]], held[parts[1]])


def _check(split: Split, success: np.ndarray) -> None:
    both = [
        f"{name} has {int((~success[index]).sum())} failures in {len(index)} episodes"
        for name, index in split._asdict().items()
        if name != "calibration" and len(set(success[index])) < 2
    ]
    if both:
        raise ValueError(
            f"{'; '.join(both)}: training and test need successes and failures. Record more "
            "episodes, or choose other fractions or another seed."
        )
