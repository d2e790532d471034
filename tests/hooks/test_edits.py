"""What one edit does to one layer's activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Add, Affine, Patch, ProjectOut, Scale, SetNeurons

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
COEFFICIENT = jnp.array([[0.0, 0.5, 1.0], [1.0, 0.0, -2.0]])[..., None]


def change(edit, coefficient=COEFFICIENT, layer=1, x=X):
    """The edit on one of two layers."""
    data = {name: array[layer] for name, array in edit.layer_data(2).items()}
    return edit.transform(x, coefficient, data)


def rows(*shape):
    return jnp.asarray(RNG.normal(size=(2, *shape)), jnp.float32)


def test_add_adds_the_layers_own_vector():
    vector = rows(4)
    np.testing.assert_allclose(change(Add(vector=vector)), X + COEFFICIENT * vector[1], rtol=1e-6)


def test_set_neurons_at_strength_one_overwrites_the_chosen_and_leaves_the_rest():
    mask, value = jnp.array([[0, 0, 0, 0], [0, 1, 0, 1]], jnp.float32), rows(4)
    out = change(SetNeurons(mask=mask, value=value), jnp.ones((2, 3, 1)))
    np.testing.assert_allclose(out[..., [1, 3]], jnp.tile(value[1, [1, 3]], (2, 3, 1)), rtol=1e-6)
    np.testing.assert_array_equal(out[..., [0, 2]], X[..., [0, 2]])


def test_scale_interpolates_to_the_factor():
    factor = jnp.full((2, 1), 3.0)
    np.testing.assert_allclose(change(Scale(factor=factor)), X * (1 + 2 * COEFFICIENT), rtol=1e-6)


def test_project_out_removes_the_direction_and_nothing_else():
    direction = 7 * rows(4)
    unit = direction[1] / jnp.linalg.norm(direction[1])
    out = change(ProjectOut(direction=direction), jnp.ones((2, 3, 1)))
    np.testing.assert_allclose(out @ unit, 0, atol=1e-6)
    np.testing.assert_allclose(X - out, (X @ unit)[..., None] * unit, atol=1e-6)


def test_a_zero_direction_projects_nothing_out():
    np.testing.assert_array_equal(change(ProjectOut(direction=jnp.zeros((2, 4)))), X)


def test_an_affine_map_may_differ_by_row():
    weight, bias = rows(4, 4), rows(4)
    out = change(Affine(weight=weight, bias=bias), jnp.ones((2, 3, 1)))
    np.testing.assert_allclose(out, X + X @ weight[1] + bias[1], atol=1e-6)
    by_row = Affine(
        weight=jnp.stack([weight, 0 * weight], 1)[:, :, None],
        bias=jnp.stack([bias, 0 * bias], 1)[:, :, None],
    )
    mixed = change(by_row, jnp.ones((2, 3, 1)))
    np.testing.assert_allclose(mixed[0], out[0], atol=1e-6)
    np.testing.assert_array_equal(mixed[1], X[1])


def test_patch_at_strength_one_is_the_other_runs_value():
    value = rows(2, 3, 4)
    out = change(Patch(value=value), jnp.ones((2, 3, 1)))
    np.testing.assert_allclose(out, value[1], atol=1e-6)


EDITS = [
    Add(vector=rows(4)),
    SetNeurons(mask=jnp.ones((2, 4)), value=rows(4)),
    Scale(factor=rows(4)),
    ProjectOut(direction=rows(4)),
    Affine(weight=rows(4, 4), bias=rows(4)),
    Patch(value=rows(2, 3, 4)),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_an_edit_keeps_the_dtype(edit):
    assert change(edit, x=X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_arrays_without_the_stacks_layers_are_refused(edit):
    with pytest.raises(ValueError, match="must be the stack's 3 layers"):
        edit.layer_data(3)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_only_site_and_tokens_are_static(edit):
    leaves, structure = jax.tree.flatten(edit.replace(strength=jnp.float32(0.3)))
    other = jax.tree.map(lambda leaf: leaf + 1, edit.replace(strength=jnp.float32(0.3)))
    assert jax.tree.structure(other) == structure
    assert len(leaves) == len(edit.layer_data(2)) + 1
    assert jax.tree.structure(edit.replace(tokens="text", strength=0.0)) != structure


def test_an_edit_at_an_unknown_site_is_refused():
    with pytest.raises(ValueError, match="is not a site"):
        Add(site="vlm.logits", vector=rows(4))
