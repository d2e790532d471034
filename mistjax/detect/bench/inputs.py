"""What each row of the comparison reads and with which options, or why it cannot run.

An input that was not recorded becomes a sentence that says so: the row stays in the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mistjax.detect.bench.config import BenchConfig
from mistjax.detect.inputs import Input, hidden_features
from mistjax.detect.registry import DETECTORS, Method
from mistjax.rollouts.trace import Trace

SMALL_NOTE = "networks an eighth as wide as the source's"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: key of `DETECTORS`.
        reads: what it reads; None where that was not recorded.
        missing: why it cannot run here; "" where it can.
        options: of its fit.
        note: where it differs from its source.
    """

    name: str
    reads: Input | None
    missing: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def method(self) -> Method:
        """Its entry in the registry."""
        return DETECTORS[self.name]


def cases(probes: Sequence[Trace], executed: int | None, config: BenchConfig) -> list[Case]:
    """Every row in the registry's order, applicable or not.

    Raises:
        ValueError: `config.detectors` or `config.features` names an unknown one.
    """
    unknown = [name for name in config.detectors if name not in DETECTORS]
    if unknown:
        raise ValueError(f"no detectors called {unknown}: choose among {', '.join(DETECTORS)}.")
    if config.features:
        hidden_features(probes, config.features)
    return [
        _case(name, probes, executed, config)
        for name in DETECTORS
        if not config.detectors or name in config.detectors
    ]


def _case(name: str, probes: Sequence[Trace], executed: int | None, config: BenchConfig) -> Case:
    method = DETECTORS[name]
    try:
        reads = method.declare(
            probes,
            executed,
            features=config.features,
            pool=config.pool,
            displacements=config.displacements,
        )
    except ValueError as error:
        return Case(name, None, str(error))
    options = method.options(
        reads, executed, seed=config.seed, epochs=config.epochs, networks=config.networks
    )
    notes = []
    if config.networks == "small" and method.small:
        notes.append(SMALL_NOTE)
    if config.epochs is not None and method.training is not None:
        notes.append(f"{config.epochs} epochs, by default {method.training.epochs}")
    return Case(name, reads, "", options, "; ".join(notes))
