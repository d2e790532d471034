"""What one edit does to one layer's activations."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Add, Affine, Hooks, Patch, ProjectOut, Scale, SetNeurons, Tap

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
COEFFICIENT = jnp.array([[0.0, 0.5, 1.0], [1.0, 0.0, -2.0]])[..., None]


def change(edit, coefficient=COEFFICIENT, layer=1, x=X):
    """The edit on one of two layers."""
    data = {
        name: array[layer].reshape((1,) * (x.ndim - array[layer].ndim) + array[layer].shape)
        for name, array in edit.layer_data(2).items()
    }
    return edit.transform(x, coefficient, data)


def rows(*shape):
    return jnp.asarray(RNG.normal(size=(2, *shape)), jnp.float32)


def test_add_adds_the_layers_own_vector():
    vector = rows(4)
    np.testing.assert_allclose(
        change(Add(vector=vector)), X + COEFFICIENT * vector[1, None, None], rtol=1e-6
    )


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
    np.testing.assert_allclose(X - out, (X @ unit)[..., None] * unit[None, None], atol=1e-6)


def test_a_zero_direction_projects_nothing_out():
    np.testing.assert_array_equal(change(ProjectOut(direction=jnp.zeros((2, 4)))), X)


def test_an_affine_map_may_differ_by_row():
    weight, bias = rows(4, 4), rows(4)
    out = change(Affine(weight=weight, bias=bias), jnp.ones((2, 3, 1)))
    np.testing.assert_allclose(out, X + X @ weight[1] + bias[1, None, None], atol=1e-6)
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


def shaped(kind, *shape, **names):
    arrays = {name: jnp.ones((2, *own)) for name, own in names.items()}
    return kind(site="vlm.attn_heads" if len(shape) == 4 else "vlm.resid", **arrays)


WRONG = {
    "a number for the whole width": (Add, (3, 5, 4), {"vector": (1,)}),
    "another width": (Add, (3, 5, 4), {"vector": (3,)}),
    "one vector a row without a token axis": (Add, (3, 5, 4), {"vector": (3, 4)}),
    "more rows than there are": (Add, (1, 5, 4), {"vector": (3, 1, 4)}),
    "more tokens than there are": (Add, (3, 1, 4), {"vector": (1, 5, 4)}),
    "one head for all": (ProjectOut, (3, 5, 2, 4), {"direction": (4,)}),
    "a map of another width": (Affine, (3, 5, 4), {"weight": (3, 3), "bias": (3,)}),
    "a map for each row of heads": (
        Affine,
        (3, 5, 2, 4),
        {"weight": (3, 1, 4, 4), "bias": (3, 1, 4)},
    ),
    "a patch for all tokens": (Patch, (3, 5, 4), {"value": (3, 1, 4)}),
    "a patch of fewer rows": (Patch, (3, 5, 4), {"value": (2, 5, 4)}),
    "a mask of other neurons": (SetNeurons, (3, 5, 4), {"mask": (3,), "value": (3,)}),
    "a factor of more heads": (Scale, (3, 5, 2, 4), {"factor": (3, 1)}),
}


@pytest.mark.parametrize(("kind", "shape", "names"), WRONG.values(), ids=WRONG)
def test_an_array_that_jax_would_broadcast_is_refused(kind, shape, names):
    edit = shaped(kind, *shape, **names)
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.\w+ has shape .* in each layer"):
        edit.check({name: array[0] for name, array in edit.layer_data(2).items()}, shape)


RIGHT = {
    "one vector": (Add, (3, 5, 4), {"vector": (4,)}),
    "one vector a row": (Add, (3, 5, 4), {"vector": (3, 1, 4)}),
    "one factor": (Scale, (3, 5, 4), {"factor": (1,)}),
    "a factor a head": (Scale, (3, 5, 2, 4), {"factor": (2, 1)}),
    "a vector shared by heads": (Add, (3, 5, 2, 4), {"vector": (1, 4)}),
    "a map": (Affine, (3, 5, 2, 4), {"weight": (4, 4), "bias": (4,)}),
    "a map a row": (Affine, (3, 5, 4), {"weight": (3, 1, 4, 4), "bias": (3, 1, 4)}),
    "one patch": (Patch, (3, 5, 4), {"value": (1, 5, 4)}),
}


@pytest.mark.parametrize(("kind", "shape", "names"), RIGHT.values(), ids=RIGHT)
def test_an_array_for_each_value_each_row_or_all_fits(kind, shape, names):
    edit = shaped(kind, *shape, **names)
    edit.check({name: array[0] for name, array in edit.layer_data(2).items()}, shape)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["vector", "strength", "gate", "step_weights"])
def test_an_edit_without_numbers_is_refused_by_field_where_that_can_be_seen(field, bad):
    fine = Add(vector=rows(4), strength=0.0, gate=jnp.ones(2), step_weights=jnp.ones(3))
    value = bad if field == "strength" else getattr(fine, field).at[0].set(bad)
    for wrong in (value, jnp.asarray(value)):
        edit = fine.replace(**{field: wrong})
        with pytest.raises(ValueError, match=rf"Add\.{field} at 'vlm\.mlp_out' holds NaN or Inf"):
            Hooks.of([fine, edit], ())
    assert jax.jit(lambda edit: Hooks.of([edit], ()).edits[0].strength)(edit).shape == ()


def test_step_weights_are_one_for_each_step():
    Hooks.of([Add(vector=rows(4), step_weights=jnp.ones(3)), Add(vector=rows(4))], ()).check_steps(
        3
    )
    for shape in ((2,), (4,), (1,)):
        edit = Add(vector=rows(4)).replace(step_weights=jnp.ones(shape))
        with pytest.raises(ValueError, match="an inference has 3 steps"):
            Hooks.of([edit], ()).check_steps(3)


def test_a_single_edit_or_tap_is_no_sequence():
    for edits, taps in ((Add(vector=rows(4)), ()), ((), Tap("vlm.resid"))):
        with pytest.raises(ValueError, match="in a tuple"):
            inspect.unwrap(Hooks.of.__func__)(Hooks, edits, taps)
