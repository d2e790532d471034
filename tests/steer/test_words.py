"""What neurons write, and what they do beside random ones."""

import numpy as np
import pytest

from mistjax.report.words import WordsConfig, find_words, told
from mistjax.steer import find_concept, top_names, value_vectors
from mistjax.steer.effects import neuron_effect
from mistjax.steer.words import action_share, clusters, layer_rows, word_rows


@pytest.fixture(scope="module")
def action(planted):
    values = value_vectors(planted, "action")
    return values, top_names(values, 1)


def test_every_neuron_is_in_one_cluster_with_those_that_point_its_way(action):
    values, top = action
    found = clusters(values, top, 6)
    places = [(*at,) for c in found for at in zip(c.layers, c.neurons, strict=True)]
    assert len(places) == len(set(places)) == values.vectors.shape[0] * values.vectors.shape[1]
    assert [len(c) for c in found] == sorted((len(c) for c in found), reverse=True)
    vectors = np.asarray(values.vectors * values.scale[None, None], np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    own = [np.mean(u @ u.T) for c in found if len(u := unit[c.layers, c.neurons]) > 2]
    every = unit.reshape(-1, unit.shape[-1])
    assert min(own) > np.mean(every @ every.T)


def test_layers_and_words_count_every_neuron_once(planted):
    values = value_vectors(planted)
    top = top_names(values, 1)
    total = values.vectors.shape[0] * values.vectors.shape[1]
    words = word_rows(values, top, 10**6)
    assert sum(int(row["neurons"]) for row in words) == total
    assert sum(int(row["neurons"]) for row in layer_rows(values, top)) == total
    slowly = next(row for row in words if row["name"] == "“slowly”")
    assert slowly["strongest"].startswith("layer 1 neuron 5")


def test_words_of_a_vlm_are_no_actions_and_those_of_an_expert_are(planted, action):
    values, top = action
    assert action_share(values, top.ids) == 1
    vlm = value_vectors(planted)
    assert action_share(vlm, top_names(vlm, 1).ids) == 0


@pytest.mark.parametrize("way", ["overwrite", pytest.param("add", marks=pytest.mark.slow)])
def test_a_neuron_that_lifts_is_beyond_random_ones(planted, raw, key, action, way):
    values, top = action
    lift = find_concept(values, top, "lift", ["+dz"], layers=(2,), limit=1)
    assert (lift.layers[0], lift.neurons[0]) == (2, 3)
    effect = neuron_effect(
        planted, raw, values, lift, (-0.5, 0.5), key, way=way, controls=4, unit=1.0
    )
    assert effect.span("dz") > 0 and effect.z("dz") > 3
    assert effect.p_value("dz") < 0.05 < effect.p_value("dx")


def test_nothing_is_measured_without_scenes(planted):
    found = find_words(planted, WordsConfig(clusters=2, concepts={"slow": ["slow*"]}))
    assert [c.name for c in found.concepts] == ["slow", "cluster 1", "cluster 2"]
    assert "Nothing was measured" in told(found, 0)
