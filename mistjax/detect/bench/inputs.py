"""What each row of the comparison reads, with which options, and why where it cannot run.

A detector that is not listed here reads hidden states and needs no options. An input that was not
recorded becomes a sentence that says so: the row stays in the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mistjax.detect.bench.config import BenchConfig
from mistjax.detect.bench.readers import Reader
from mistjax.detect.methods.samples.action_samples import ChunkLayout
from mistjax.detect.registry import DETECTORS, training_config
from mistjax.rollouts.trace import Trace

CONTROLS = ("trajectory_length", "shuffled_labels")
HEADS = ("safe_mlp", "safe_lstm")
VARIANCES = {
    f"action_{group}_var": least
    for group, least in (
        ("total", 1),
        ("general", 1),
        ("translation", 3),
        ("rotation", 7),
        ("gripper", 7),
    )
}
# row -> what it reads; everything else reads "hidden"
READS = {
    "sensitivity_gate": "sensitivity",
    "rnd": "hidden+chunk",
    "max_token_prob": "probabilities",
    "avg_token_prob": "probabilities",
    "max_token_entropy": "tokens",
    "avg_token_entropy": "tokens",
    "cluster_entropy": "samples",
    "stac": "samples",
    "stac_single": "chunk",
    "ace": "positions",
    "fiper": "hidden+positions",
    **dict.fromkeys(VARIANCES, "samples"),
}
SMALL_UNET = {"channels": (32, 64, 128), "step_dim": 32}
SMALL_MLPS = {
    "target_widths": (128, 256, 512, 64),
    "predictor_widths": (128, 256, 512, 256, 128, 64),
}
SMALL_NOTE = "networks an eighth as wide as the source's"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: of the row.
        detector: key of `DETECTORS`.
        reads: which input.
        missing: why it cannot run here; "" where it can.
        options: of its fit.
        note: where it differs from its source.
    """

    name: str
    detector: str
    reads: str
    missing: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def control(self) -> bool:
        """Knows nothing of the features: a detector that does not beat it says nothing either."""
        return self.name in CONTROLS

    @property
    def standardised(self) -> bool:
        """Features of hidden states are z-scored; token statistics and actions have units."""
        return self.reads in ("hidden", "hidden+chunk")


def cases(
    probes: Sequence[Trace],
    inputs: dict[str, Reader | str],
    executed: int | None,
    config: BenchConfig,
) -> list[Case]:
    """Every row in the registry's order, applicable or not.

    Raises:
        ValueError: `config.detectors` names an unknown one.
    """
    rows = [*DETECTORS]
    rows.insert(rows.index("stac") + 1, "stac_single")
    unknown = [name for name in config.detectors if name not in rows]
    if unknown:
        raise ValueError(f"no detectors called {unknown}: choose among {', '.join(rows)}.")
    horizon, dim = probes[0].chunks.shape[1:]
    found = []
    for name in rows:
        if config.detectors and name not in config.detectors:
            continue
        reads = READS.get(name, "hidden")
        source = inputs[reads]
        missing = source if isinstance(source, str) else ""
        if not missing and name in ("stac", "stac_single"):
            missing = _no_overlap(executed, horizon)
        if dim < VARIANCES.get(name, 0) and not missing:
            missing = (
                f"reads {VARIANCES[name]} action dimensions (x, y, z, three rotations, gripper); "
                f"these actions have {dim}"
            )
        samples = 1
        if not missing and reads.endswith(("samples", "positions")):
            samples = probes[0].aux["sampled_actions"].shape[1]
        layout = ChunkLayout(samples, horizon, dim)
        detector = "stac" if name == "stac_single" else name
        options = {} if missing else _options(name, layout, executed, config)
        found.append(Case(name, detector, reads, missing, options, _note(name, config)))
    return found


def _options(
    name: str, layout: ChunkLayout, executed: int | None, config: BenchConfig
) -> dict[str, Any]:
    unet = SMALL_UNET if config.networks == "small" else {}
    mlps = SMALL_MLPS if config.networks == "small" else {}
    heads: dict[str, Any] = {}
    if name in HEADS or name == "shuffled_labels":
        changes = {} if config.epochs is None else {"epochs": config.epochs}
        head = name if name in HEADS else "safe_mlp"
        heads = {"training": training_config(head, **changes), "seed": config.seed}
    chunk = layout.horizon * layout.dim
    return {
        "rnd": {"action_dim": layout.dim, "chunk": chunk, "seed": config.seed, **unet},
        "logpzo": {"seed": config.seed, **unet},
        "rnd_oe": {"seed": config.seed, **mlps},
        "fiper": {"layout": layout, "seed": config.seed, **mlps},
        "ace": {"layout": layout},
        "cluster_entropy": {"layout": layout},
        "stac": {"layout": layout, "executed": executed},
        "stac_single": {"layout": layout, "executed": executed},
        "pca_kmeans": {"seed": config.seed},
        **{variance: {"layout": layout} for variance in VARIANCES},
    }.get(name, heads)


def _note(name: str, config: BenchConfig) -> str:
    if config.networks == "small" and name in ("rnd", "logpzo", "rnd_oe", "fiper"):
        return SMALL_NOTE
    if config.epochs is not None and (name in HEADS or name == "shuffled_labels"):
        return f"{config.epochs} epochs, the source takes 1000"
    return ""


def _no_overlap(executed: int | None, horizon: int) -> str:
    if executed is None:
        return "the run does not say how many actions of a chunk are executed"
    if not executed < horizon:
        return f"chunks of {horizon} actions, all executed, do not overlap"
    return ""
