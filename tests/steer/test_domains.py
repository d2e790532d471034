"""What has no meaning as a strength, a layer, a group or a target is refused."""

import jax
import numpy as np
import pytest

from mistjax.hooks import Tap
from mistjax.steer import (
    cause_table,
    concept_vector,
    dose_response,
    find_concept,
    observation_group,
    overwrite_concept,
    top_names,
)
from mistjax.steer.value_vectors import value_vectors

TAP = Tap("vlm.resid", None, "text", "mean")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def slow(planted):
    values = value_vectors(planted)
    return values, find_concept(values, top_names(values, 3), "slow", ["slow*"])


@pytest.mark.parametrize("wrong", [{"layers": (99,)}, {"layers": (-9,)}, {"limit": 0}])
def test_layers_and_limits_that_do_not_exist_are_refused(slow, wrong):
    values, _ = slow
    with pytest.raises(ValueError, match=r"do not exist|at least 1 neuron"):
        find_concept(values, top_names(values, 3), "slow", ["slow*"], **wrong)


def test_a_layer_may_be_counted_from_the_end(slow):
    values, _ = slow
    found = find_concept(values, top_names(values, 3), "slow", ["slow*"], layers=(-1,))
    assert set(found.layers.tolist()) == {len(values.vectors) - 1}


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(slow, planted, wrong):
    values, concept = slow
    vector = concept_vector(values, concept)
    with pytest.raises(ValueError, match="finite"):
        cause_table({"slow": vector}, {"text": ("slow", wrong)})
    with pytest.raises(ValueError, match="finite"):
        dose_response(planted, [{}], vector, (0.0, wrong), KEY)
    with pytest.raises(ValueError, match="finite"):
        overwrite_concept(values, concept, wrong)


def test_groups_of_nothing_are_refused(planted):
    with pytest.raises(ValueError, match="at least one"):
        observation_group(planted, [], TAP, KEY)
    with pytest.raises(ValueError, match="at least one"):
        observation_group(planted, [{}], TAP, KEY, batch=0)
