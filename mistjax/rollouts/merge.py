"""`merge`: one run folder of several, e.g. of tasks that were played side by side."""

from __future__ import annotations

import collections
import shutil
from collections.abc import Sequence
from pathlib import Path

from mistjax.files import atomic
from mistjax.rollouts.run import Run, load_run
from mistjax.rollouts.store import RunWriter


def merge(runs: Sequence[Run], out: Path | str) -> Run:
    """Copies the episodes of several run folders of one configuration into one; resumes where it
    stopped.

    Args:
        runs: folders, as `load_run` opens them; no episode is in two of them.
        out: run folder, new or of the same configuration; what it has stays.

    Raises:
        ValueError: no runs, or an episode in two of them; a run of another configuration, or a
            damaged one.
        FileNotFoundError: an episode without its trace.
    """
    if not runs:
        raise ValueError("no runs are given: expected the folders of at least one.")
    times = collections.Counter(seed for run in runs for seed in run.seeds)
    if twice := [seed for seed, n in times.items() if n > 1]:
        raise ValueError(f"seed {min(twice)} is in two of the runs: expected each episode once.")
    for run in runs:
        with RunWriter.open(out, run.config) as writer:
            for seed in sorted(set(run.seeds) - writer.seeds):
                trace = run.trace(seed)
                if (video := run.video(seed)) is not None:
                    videos = Path(out) / "videos"
                    videos.mkdir(exist_ok=True)
                    with atomic(videos / video.name) as temporary:
                        shutil.copyfile(video, temporary)
                writer.add(trace)
    return load_run(out)
