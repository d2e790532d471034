"""What the gate's study counts, and what it makes of it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.studies.gate import spared, spent


def run(*flags) -> Any:
    traces = [
        SimpleNamespace(seed=seed, chunks=np.zeros((len(f), 8, 5)), aux={"remembered": np.array(f)})
        for seed, f in enumerate(flags)
    ]
    return SimpleNamespace(traces=lambda: reversed(traces))


def test_an_inference_that_spends_on_two_inputs_counts_once():
    both = run([[True, True], [False, True], [False, False]], [[False, False]])
    assert spent(both, "remembered").tolist() == [[2, 3], [0, 1]]


def test_what_is_spared_is_a_share_of_what_the_loop_spends_for_each_inference():
    """Longer episodes alone spare nothing."""
    loop = np.array([[4, 8], [2, 4], [6, 12]])
    assert spared(loop, loop // 2 * [[1, 2]]) == pytest.approx([0.5, 0.5, 0.5])
    assert spared(loop, 3 * loop) == pytest.approx([0, 0, 0])
    assert spared(0 * loop, loop) is None
    found = spared(loop, np.array([[4, 8], [0, 4], [6, 12]]))
    assert found is not None and found[0] == pytest.approx(1 / 6)
    assert found[1] < found[0] < found[2]
