"""Neurons are found by the words that they write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.models.config import TINY
from mistjax.steer import (
    concept_table,
    control_neurons,
    find_concept,
    top_names,
    value_vectors,
)
from mistjax.steer.concepts import matching_names


def test_a_neuron_that_writes_a_word_is_found_by_it(planted):
    values = value_vectors(planted)
    top = top_names(values, 3)
    assert values.names[top.ids[1, 5, 0]] == "▁slowly"
    concept = find_concept(values, top, "slow", ["slow*"])
    assert (concept.layers[0], concept.neurons[0]) == (1, 5)
    assert set(concept.names) == {"▁slow", "▁slowly"}
    assert "'slowly'" in concept_table(values, top, [concept])


def test_an_action_neuron_is_found_by_the_dimension_that_it_raises(planted):
    values = value_vectors(planted, "action")
    top = top_names(values, 1)
    assert values.names[top.ids[2, 3, 0]] == "+dz"
    up = find_concept(values, top, "up", ["+dz"])
    down = find_concept(values, top, "down", ["-dz"])
    assert (2, 3) in set(zip(up.layers.tolist(), up.neurons.tolist(), strict=True))
    assert (2, 3) not in set(zip(down.layers.tolist(), down.neurons.tolist(), strict=True))


def test_the_final_norm_of_a_time_conditioned_expert_is_averaged_over_the_flow_steps(planted):
    params = jax.tree.map(lambda leaf: leaf, planted.variables["params"])
    width = TINY.action_expert.width
    identity = {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)}
    params |= {"time_mlp_in": identity, "time_mlp_out": identity}
    kernel = jnp.zeros((width, 3 * width))
    bias = jnp.zeros(3 * width).at[0].set(0.5)
    params["PaliGemma"]["llm"]["final_norm_1"] = {"Dense_0": {"kernel": kernel, "bias": bias}}
    config = dataclasses.replace(TINY, pi05=True)
    values = value_vectors(planted.replace(config=config, variables={"params": params}), "action")
    np.testing.assert_allclose(values.scale[:2], [1.5, 1.0], atol=1e-6)


@pytest.mark.parametrize("max_bytes", [1, 4 * 30 * 7, 2**28])
def test_the_memory_budget_does_not_change_the_names(planted, max_bytes):
    values = value_vectors(planted)
    logits = values.decode(values.vectors)
    top = top_names(values, 4, max_bytes=max_bytes) if max_bytes > 1 else top_names(values, 4)
    np.testing.assert_array_equal(top.ids[..., 0], np.argmax(logits, -1))
    z = (jnp.max(logits, -1) - logits.mean(-1)) / logits.std(-1)
    np.testing.assert_allclose(top.scores[..., 0], z, rtol=1e-4)


def test_layers_and_limit_restrict_the_search(planted):
    values = value_vectors(planted)
    top = top_names(values, 5)
    concept = find_concept(values, top, "slow", ["slow*"], layers=(0, 2), limit=3)
    assert len(concept) == 3 and 1 not in concept.layers
    assert (np.diff(concept.scores) <= 0).all()


def test_the_control_has_as_many_other_neurons_in_each_layer_with_close_norms(planted):
    values = value_vectors(planted)
    concept = find_concept(values, top_names(values, 3), "slow", ["slow*"])
    control = control_neurons(values, concept, seed=1)
    assert sorted(control.layers) == sorted(concept.layers)
    pairs = [
        set(zip(c.layers.tolist(), c.neurons.tolist(), strict=True)) for c in (concept, control)
    ]
    assert not pairs[0] & pairs[1] and len(pairs[1]) == len(concept)
    ordinary = concept.neurons != 5
    norms = np.linalg.norm(values.vectors, axis=-1)
    ours, theirs = (norms[c.layers, c.neurons][ordinary].mean() for c in (concept, control))
    assert abs(ours - theirs) < 0.15 * ours


def test_words_match_whole_entries_unless_they_carry_a_wildcard():
    names = ("▁slow", "slowly", "▁Slow", "▁low", "lower")
    assert matching_names(names, ["slow"]).tolist() == [0, 2]
    assert matching_names(names, ["slow*"]).tolist() == [0, 1, 2]
    assert matching_names(names, ["low*", "slowly"]).tolist() == [1, 3, 4]


def test_a_word_that_is_not_in_the_vocabulary_is_named_with_close_ones(planted):
    values = value_vectors(planted)
    with pytest.raises(ValueError, match=r"'slwly'; close to it: \['slowly'"):
        find_concept(values, top_names(values, 1), "slow", ["slwly"])


def test_a_stack_without_names_is_refused(policy):
    with pytest.raises(ValueError, match="'vision' has no names"):
        value_vectors(policy, "vision")
