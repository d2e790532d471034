"""How each input of a detector is read from a recorded episode: functions Trace -> [inferences, d].

- hidden         features that a tap recorded, pooled
- chunk          the predicted actions
- samples        several chunks for one observation, `aux["sampled_actions"]` (see `resampled`)
- positions      the same, translations summed over the chunk where actions are displacements
- probabilities  `aux["token_log_prob"]` [N,tokens]
- tokens         the same and `aux["token_entropy"]`
- sensitivity    `aux["sensitivity"]`, see `gates.directional_sensitivity`
- hidden+...     two of them, one after the other
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mistjax.detect.bench.config import BenchConfig
from mistjax.detect.features import DEFAULT_FEATURES
from mistjax.detect.pooling import pool
from mistjax.rollouts.trace import Trace

Reader = Callable[[Trace], np.ndarray]


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
