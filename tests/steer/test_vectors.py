"""Each maker gives the vector that it promises, and its edit does what it says."""

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Add, Tap
from mistjax.policies import pi
from mistjax.steer import (
    concept_vector,
    difference_of_means,
    find_concept,
    overwrite_concept,
    top_names,
    value_vectors,
)

TAP = Tap("vlm.resid", (0, 1), "text", "mean")


@pytest.fixture(scope="module")
def values(planted):
    return value_vectors(planted)


@pytest.fixture(scope="module")
def slow(values):
    return find_concept(values, top_names(values, 3), "slow", ["slow*"])


@pytest.fixture(scope="module")
def quick(values):
    return find_concept(values, top_names(values, 2), "quick", ["quick*"])


def groups(policy, shift, seed=0):
    """Two groups of 40 noisy activations [N,2,D] that differ by `shift` [2,D]."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, 40, *shift.shape)).astype(np.float32)
    return noise[0] * 0.1 + shift, noise[1] * 0.1


@pytest.fixture
def shift():
    return np.random.default_rng(3).normal(size=(2, 32)).astype(np.float32)


def hidden(policy, obs, *edits, taps=()):
    """What the VLM hands on; compiles faster than whole samples."""
    return policy.prefill(obs, edits=edits, taps=taps).hidden


def test_strength_0_changes_no_bit(planted, values, slow, obs):
    bare = hidden(planted, obs)
    for steering in (concept_vector(values, slow), overwrite_concept(values, slow, 10.0)):
        np.testing.assert_array_equal(bare, hidden(planted, obs, steering.to_edit(0.0)))
        moved = hidden(planted, obs, steering.to_edit(3.0))
        assert np.abs(moved - bare).max() > 1e-4


def test_fifty_strengths_and_vectors_compile_once(planted, values, slow, quick, obs):
    before = pi._prefill._cache_size()
    for i in range(50):
        vector = concept_vector(values, (slow, quick)[i % 2]).at_layers(i % 3)
        hidden(planted, obs, vector.to_edit(i / 10))
    assert pi._prefill._cache_size() - before <= 1


def test_adding_a_concept_vector_raises_its_neurons_by_the_strength(planted, values, slow, obs):
    """Exactly what its scale promises: the same as +2 on each of the concept's neurons."""
    neurons = overwrite_concept(values, slow, 1.0).mask
    raised = Add(site="vlm.mlp_neurons", strength=2.0, vector=neurons)
    vector = concept_vector(values, slow)
    np.testing.assert_allclose(
        hidden(planted, obs, vector.to_edit(2.0)), hidden(planted, obs, raised), atol=1e-4
    )


def test_a_concept_against_itself_is_refused_and_against_another_changes_sign(values, slow, quick):
    one, other = (
        concept_vector(values, a, against=b).vector for a, b in ((slow, quick), (quick, slow))
    )
    np.testing.assert_allclose(one, -other, atol=1e-6)
    with pytest.raises(ValueError, match="must differ"):
        concept_vector(values, slow, against=slow)


def test_overwritten_neurons_have_the_activation_asked_for(planted, values, slow, obs):
    tap = Tap("vlm.mlp_neurons", None, "text", None)
    edit = overwrite_concept(values, slow, 4.0).to_edit(1.0)
    neurons = planted.prefill(obs, edits=(edit,), taps=(tap,)).taps[str(tap)]
    np.testing.assert_allclose(neurons[1][:, :3, 5], 4.0, atol=1e-5)


def test_a_planted_shift_is_recovered(policy, shift):
    towards, away = groups(policy, shift)
    vector = difference_of_means(towards, away, TAP, policy.spec, groups="planted")
    cosine = np.sum(vector.direction[:2] * shift, -1) / np.linalg.norm(shift, axis=-1)
    assert (cosine > 0.99).all()
    np.testing.assert_allclose(vector.scale[:2], np.linalg.norm(shift, axis=-1), rtol=0.05)
    assert not vector.direction[2].any() and vector.gate.tolist() == [1, 1, 0]
    assert (vector.site, vector.tokens) == ("vlm.resid", "text")
    assert vector.provenance.details["groups"] == "planted"


def test_groups_that_do_not_fit_are_refused(policy, shift):
    towards, away = groups(policy, shift)
    with pytest.raises(ValueError, match=r"expected \[examples, 2, 32\]"):
        difference_of_means(towards[:, :1], away[:, :1], TAP, policy.spec)
    with pytest.raises(ValueError, match="must differ"):
        difference_of_means(towards, towards, TAP, policy.spec)
    with pytest.raises(ValueError, match="both need some"):
        difference_of_means(towards, away[:0], TAP, policy.spec)


def test_the_random_control_has_the_same_length_in_every_layer(policy, shift, key):
    vector = difference_of_means(*groups(policy, shift), TAP, policy.spec)
    control = vector.control(key)
    lengths = [jnp.linalg.norm(v.vector, axis=-1) for v in (vector, control)]
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-5)
    assert (np.abs(np.sum(vector.direction * control.direction, -1)) < 0.7).all()
    assert control.provenance.maker == "control"


def test_layers_and_flow_steps_are_weighed_in_the_edit(policy):
    tap = Tap("action.resid", None, "action", "mean")
    ones = np.ones((4, 3, 16), np.float32)
    vector = difference_of_means(ones, 0 * ones, tap, policy.spec).at_layers(-1)
    edit = vector.to_edit(-0.5, jnp.array([0.0, 1.0, 0.0]))
    assert (edit.site, edit.tokens, float(edit.strength)) == ("action.resid", "action", -0.5)
    assert edit.gate.tolist() == [0, 0, 1] and edit.step_weights.tolist() == [0, 1, 0]
    np.testing.assert_allclose(edit.vector, 1.0, atol=1e-6)
