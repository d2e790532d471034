"""What each detector of the registry reads from a recorded episode, and with which options.

Inputs, each a function Trace -> [inferences, d]:

- hidden       features that a tap recorded, pooled; z-scored with the training statistics
- chunk        the predicted actions
- samples      several chunks for one observation, `aux["sampled_actions"]` [N,S,H,A] (`Resampled`)
- tokens       probability and entropy of each decoded action token
- sensitivity  `aux["sensitivity"]`, see `gates.directional_sensitivity`

A detector that is not listed below reads hidden states and needs no options. An input that was not
recorded becomes a sentence that says so: the row stays in the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mistjax.detect.action_samples import ChunkLayout
from mistjax.detect.bench.config import BenchConfig
from mistjax.detect.features import DEFAULT_FEATURES
from mistjax.detect.pooling import pool
from mistjax.detect.registry import DETECTORS, training_config
from mistjax.rollouts.trace import Trace

Reader = Callable[[Trace], np.ndarray]
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


def hidden_names(probes: Sequence[Trace], wanted: Sequence[str]) -> tuple[str, ...]:
    """The recorded features that detectors of hidden states read.

    Raises:
        ValueError: they were not all recorded, or there is a choice to make.
    """
    recorded = sorted(set.intersection(*(set(probe.features) for probe in probes)))
    default = tuple(str(tap) for tap in DEFAULT_FEATURES.taps)
    if not wanted and set(default) <= set(recorded):
        return default
    names = tuple(wanted) or tuple(recorded)
    if set(names) <= set(recorded) and (wanted or len(recorded) == 1):
        return names
    raise ValueError(
        f"features {list(wanted or default)} were not recorded in every run. Choose with "
        f"--features among {recorded}."
    )


def readers(
    probes: Sequence[Trace], hidden: Sequence[str], config: BenchConfig
) -> dict[str, Reader | str]:
    """Every input: how to read it from a trace, or why it cannot be.

    Args:
        probes: one trace of each run.
        hidden: names of features.
        config: pooling, and whether actions are displacements.
    """
    found: dict[str, Reader | str] = {
        "hidden": lambda trace: _hidden(trace, hidden, config.pool),
        "chunk": lambda trace: _flat(trace.chunks),
    }
    for name, keys in (
        ("samples", ("sampled_actions",)),
        ("sensitivity", ("sensitivity",)),
        ("probabilities", ("token_log_prob",)),
        ("tokens", ("token_log_prob", "token_entropy")),
    ):
        lacking = [key for key in keys if any(key not in probe.aux for probe in probes)]
        found[name] = _not_recorded(lacking) if lacking else _AUX_READERS[name]
    found["positions"] = found["samples"]
    if not isinstance(found["samples"], str):
        found["positions"] = lambda trace: _positions(trace, config.displacements)
    for name in ("chunk", "positions"):
        part = found[name]
        found[f"hidden+{name}"] = part if isinstance(part, str) else _joined(found["hidden"], part)
    return found


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


def _not_recorded(keys: Sequence[str]) -> str:
    return f"not recorded: aux {', '.join(keys)}"


def _flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(len(values), -1)


def _hidden(trace: Trace, names: Sequence[str], command: str) -> np.ndarray:
    """[N,L,D] joins layers; of [N,(S),L,T,D] and [N,S,L,D] steps and tokens are pooled first."""
    parts = []
    for name in names:
        value = np.asarray(trace.features[name], np.float32)
        if "@" in name:  # a tap: [N,(S),L,(T),(heads),d]
            reduced = not name.endswith("/tokens")
            if name.split("@")[0].endswith("attn_heads"):
                value = value.reshape(*value.shape[:-2], -1)
            if not reduced:
                value = np.asarray(pool(value, command))
            if value.ndim == 4:
                value = np.asarray(pool(np.moveaxis(value, 1, 2), command))
        else:  # [N,...,D] of an imported run
            while value.ndim > 2:
                value = np.asarray(pool(value, command))
        parts.append(_flat(value))
    return np.concatenate(parts, axis=1)


def _positions(trace: Trace, displacements: bool) -> np.ndarray:
    chunks = np.array(trace.aux["sampled_actions"], np.float32)
    if displacements:
        chunks[..., :3] = np.cumsum(chunks[..., :3], axis=2)
    return _flat(chunks)


def _tokens(trace: Trace) -> np.ndarray:
    probability = np.exp(_flat(trace.aux["token_log_prob"]))
    entropy = trace.aux.get("token_entropy", np.zeros_like(probability))  # not read by *_prob
    return np.concatenate([probability, _flat(entropy)], axis=1)


def _joined(first: Any, second: Any) -> Reader:
    return lambda trace: np.concatenate([first(trace), second(trace)], axis=1)


_AUX_READERS: dict[str, Reader] = {
    "samples": lambda trace: _flat(trace.aux["sampled_actions"]),
    "sensitivity": lambda trace: _flat(trace.aux["sensitivity"]),
    "probabilities": _tokens,
    "tokens": _tokens,
}
