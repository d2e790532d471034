"""What a comparison of detectors is: which runs, which split, which settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mistjax.detect.calibration.conformal import Band, finite_sample_rank
from mistjax.detect.registry import Networks
from mistjax.hooks.pooling import parse_pool
from mistjax.ranges import whole


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """One comparison. The same configuration in the same folder resumes where it stopped.

    Attributes:
        runs: run folders of one policy. Without `train` they are divided into training, calibration
            and test episodes; with it, into the last two.
        out: folder for the rows, bench.csv and bench.html.
        train: run folders to train on, of the same policy and other seeds.
        features: names of the recorded features that detectors of hidden states read, e.g.
            "action.resid@-1/action/mean". () takes `DEFAULT_TAPS` where those were recorded, else
            the only feature there is.
        pool: how tokens and flow steps of a feature are pooled, see `hooks.pooling`.
        group: key of a JSON task; episodes with the same value count as one task. None takes the
            whole task. Metrics by earliest stop compare episodes of one task up to its shortest.
        detectors: rows of the table; () for all.
        seed: of the split and of training.
        fractions: share of the seeds for training, calibration and test.
        alpha: bound on the chance of any alarm in a success, for the calibrated threshold.
        band: shape of that threshold over time.
        epochs: of the trained heads (SAFE-MLP, SAFE-LSTM); None takes the source's 1000.
        networks: "source" gives RND, logpZO, RND-OE and FIPER networks of the original size (62 M
            parameters each: hours on a CPU); "small" an eighth of the width, and the table says so.
        displacements: actions are changes of position, so that ACE and FIPER, which read positions,
            get them summed over the chunk.
        draws: bootstrap resamples.

    Raises:
        ValueError: a number out of range, or an unknown pooling.
    """

    runs: tuple[Path, ...]
    out: Path
    train: tuple[Path, ...] = ()
    features: tuple[str, ...] = ()
    pool: str = "mean"
    group: str | None = None
    detectors: tuple[str, ...] = ()
    seed: int = 0
    fractions: tuple[float, float, float] = (0.5, 0.2, 0.3)
    alpha: float = 0.1
    band: Band = "stdev"
    epochs: int | None = None
    networks: Networks = "small"
    displacements: bool = True
    draws: int = 1000

    def __post_init__(self) -> None:
        parse_pool(self.pool)
        finite_sample_rank(1, self.alpha)
        whole("seed", self.seed, 0)
        whole("draws", self.draws, 1)
        if self.epochs is not None:
            whole("epochs", self.epochs, 1)
        if not (min(self.fractions) > 0 and abs(sum(self.fractions) - 1) < 1e-6):
            raise ValueError(f"fractions are {self.fractions}: expected shares above 0 of 1.")

    def settings(self) -> dict[str, Any]:
        """All that a finished row depends on, JSON types only."""
        values = dataclasses.asdict(self)
        for name in ("out", "detectors"):
            del values[name]
        return values | {name: [str(path) for path in values[name]] for name in ("runs", "train")}
