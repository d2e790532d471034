"""The cause is where the positive attribution lies, and the sentence says so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute import ActionValue, Attribution, describe, explain, localise
from mistjax.attribute.interventional import nuisance_mass_ratio
from mistjax.attribute.localiser import _state_named, named_words
from mistjax.attribute.text import words_of


@pytest.fixture
def attribution(linear_obs):
    """Row 0: the wrist camera, one patch. Row 1: the word "slowly", and a negative rest."""
    length = linear_obs.tokenized_prompt.shape[1]
    slowly = int(linear_obs.tokenized_prompt_mask[1].sum()) - 2
    return Attribution(
        images={
            "front": jnp.zeros((2, 2, 3)).at[1].set(-5.0),
            "wrist": jnp.zeros((2, 2, 3)).at[0, 1, 2].set(3.0),
        },
        text=jnp.zeros((2, length)).at[1, slowly].set(2.0),
        state=jnp.zeros((2, 3)).at[0, 1].set(1.0),
        value=jnp.ones(2),
        baseline_value=jnp.zeros(2),
        completeness_error=jnp.zeros(2),
        patch=(4, 4),
    )


def test_the_cause_is_the_modality_with_the_largest_share(attribution):
    cause = jax.jit(localise, static_argnames="top")(attribution, top=2)
    assert cause.modalities == ("front", "wrist", "text", "state")
    np.testing.assert_array_equal(cause.modality, [1, 2])
    np.testing.assert_allclose(cause.shares, [[0, 0.75, 0, 0.25], [0, 0, 1, 0]])
    assert cause.found.all()
    np.testing.assert_array_equal(cause.patches[0, 1, 0], [1, 2])
    np.testing.assert_array_equal(cause.boxes[0, 1, 0], [4, 8, 8, 12])
    assert cause.patch_shares[0, 1, 0] == 0.75
    assert cause.dims[0, 0] == 1


def test_words_and_regions_are_named(attribution, linear_obs, tokenizer):
    cause = localise(attribution)
    assert named_words(cause, linear_obs, tokenizer, 1) == [("slowly", 1.0)]
    wrist, word = describe(cause, linear_obs, tokenizer)
    assert wrist == (
        "The failure score comes mostly from camera wrist (75%), patch row 2 column 3 (pixels 8-12 "
        "across, 4-8 down; 75%); then the robot state (25%), camera front (0%) and the instruction "
        "(0%)."
    )
    assert word.startswith("The failure score comes mostly from the instruction (100%), “slowly”")


def test_the_numbers_of_the_state_in_a_prompt_are_no_words_of_the_instruction():
    pieces = [
        *["▁Task:", "▁go", "▁to", "▁3", ",", "▁State:", "▁12", "▁", "2", "51", ";"],
        "\n",
        "▁Action:",
    ]
    pieces[7:9] = ["▁2"]

    class Prompt:
        def id_to_piece(self, index):
            return pieces[index]

    tokens = np.arange(len(pieces))
    words = words_of(Prompt(), tokens, np.ones(len(pieces), bool))
    assert [word.text for word in words][-2:] == ["251;", "Action:"]
    named = [word.text for word in _state_named(words, ("x",))]
    assert named == [
        "Task:", "go", "to", "3", "State:", "x (written as 12)", "state 1 (written as 251)",
        "Action:",
    ]  # fmt: skip
    plain = words_of(Prompt(), tokens[1:5], np.ones(4, bool))
    assert _state_named(plain, ("x",)) == plain


def test_state_dimensions_are_named(attribution, linear_obs, tokenizer):
    state = dataclasses.replace(attribution, state=10 * attribution.state)
    sentence = describe(localise(state), linear_obs, tokenizer, state_names=("x", "height"))[0]
    assert "the robot state (77%), height (77%)" in sentence


@pytest.mark.parametrize("number", [0.0, -1.0, jnp.nan])
def test_without_positive_attribution_there_is_no_cause(number, attribution, linear_obs, tokenizer):
    nothing = jax.tree.map(lambda leaf: jnp.full_like(leaf, number), attribution)
    cause = localise(nothing)
    assert not cause.found.any()
    assert not cause.shares.any()
    sentence = describe(cause, linear_obs, tokenizer, what="action")[0]
    if jnp.isnan(number):
        assert sentence == "The attribution of the action holds NaN or Inf: it names no cause."
    else:
        assert sentence == "Nothing in the observation raises the action above its baseline."


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_number_that_is_not_finite_is_reported_and_harms_no_neighbour(bad, attribution):
    fine = localise(attribution)
    cause = localise(attribution.replace(text=attribution.text.at[1, 0].set(bad)))
    assert cause.finite.tolist() == [True, False]
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(cause))
    for ours, theirs in zip(jax.tree.leaves(cause), jax.tree.leaves(fine), strict=True):
        assert jnp.array_equal(ours[0], theirs[0])


@pytest.mark.parametrize("scale", [1e-30, 1e37])
def test_shares_do_not_depend_on_the_size_of_the_numbers(scale, attribution):
    scaled = jax.tree.map(lambda leaf: leaf * scale, attribution)
    shares, expected = localise(scaled).shares, localise(attribution).shares
    assert jnp.allclose(shares, expected, atol=1e-5)


def test_no_place_to_name_is_refused(attribution):
    with pytest.raises(ValueError, match="top is 0"):
        localise(attribution, top=0)


def test_explain_goes_from_raw_observations_to_sentences(linear, raw, key):
    explanation = explain(linear, raw, key, ActionValue(jnp.array([[1.0, 0.0]]), name="dx"))
    assert len(explanation.sentences) == 2
    for row, sentence in enumerate(explanation.sentences):
        top = explanation.cause.modalities[int(explanation.cause.modality[row])]
        spoken = {"text": "the instruction", "state": "the robot state"}.get(top, f"camera {top}")
        assert sentence.startswith(f"The dx comes mostly from {spoken} (")


def test_nuisance_of_another_size_is_refused(attribution):
    camera, grid = next(iter(attribution.images.items()))
    with pytest.raises(ValueError, match="expected those of the attribution"):
        nuisance_mass_ratio(attribution, {camera: jnp.ones((1, 1, 1))})
    with pytest.raises(ValueError, match="nuisance regions are shares"):
        nuisance_mass_ratio(attribution, {camera: jnp.full(grid.shape, 2.0)})
