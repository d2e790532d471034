"""Every method on a linear policy, where the right answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute import ATTRIBUTIONS, ActionChange, ActionValue, Baseline, attribute
from mistjax.attribute.inputs import Inputs, patch_sums
from mistjax.attribute.interventional import iss, iss_regression
from mistjax.attribute.registry import OF_ANY_POLICY

SIGNED = ("integrated_gradients", "gradient_x_input", "occlusion")
LINEAR, SQUARE = ActionValue(jnp.array([[1.0, 0.0]])), ActionValue(jnp.array([[0.0, 1.0]]))


def truth(policy, obs, baseline):
    """What each region of the linear policy adds: weight x distance to the baseline."""
    end = Inputs.of(policy, obs)
    start = baseline.inputs(policy, obs, end)
    away = jax.tree.map(lambda x, b: x - b, end, start)
    front = patch_sums(away.images["front"] * policy.pixels[None], (4, 4))
    text = jnp.where(obs.tokenized_prompt_mask, away.text.sum(-1), 0.0)
    return front, text, away.state * policy.joints[None]


@pytest.mark.parametrize("name", OF_ANY_POLICY)
def test_every_method_has_one_signature_and_one_result(name, linear, linear_obs, key):
    result = attribute(name, linear, linear_obs, key, LINEAR)
    assert {camera: x.shape for camera, x in result.images.items()} == {
        "front": (2, 2, 2),
        "wrist": (2, 2, 2),
    }
    assert result.text.shape == linear_obs.tokenized_prompt.shape
    assert result.state.shape == linear_obs.state.shape
    assert result.patch == (4, 4)
    expected = linear.sample(linear_obs, key).actions[:, 0, 0]
    np.testing.assert_allclose(result.value, expected, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in OF_ANY_POLICY if not n.startswith("iss")])
def test_a_camera_that_the_readout_does_not_depend_on_has_no_attribution(
    name, linear, linear_obs, key
):
    result = attribute(name, linear, linear_obs, key, SQUARE)
    assert not result.images["wrist"].any()
    assert result.images["front"].any()
    padding = ~linear_obs.tokenized_prompt_mask
    assert not result.text[padding].any()


@pytest.mark.parametrize("baseline", [Baseline(), Baseline("mean", "zero")])
@pytest.mark.parametrize("name", SIGNED)
def test_signed_methods_are_exact_on_a_linear_readout(name, baseline, linear, linear_obs, key):
    result = attribute(name, linear, linear_obs, key, LINEAR, baseline=baseline)
    front, text, state = truth(linear, linear_obs, baseline)
    np.testing.assert_allclose(result.images["front"], front, atol=1e-4)
    np.testing.assert_allclose(result.text, text, atol=1e-4)
    np.testing.assert_allclose(result.state, state, atol=1e-4)
    assert (result.completeness_error < 1e-3).all()


def test_only_integrated_gradients_are_complete_on_a_curved_readout(linear, linear_obs, key):
    errors = {
        name: attribute(name, linear, linear_obs, key, SQUARE).completeness_error for name in SIGNED
    }
    assert (errors.pop("integrated_gradients") < 1e-3).all()
    assert all((error > 0.05).all() for error in errors.values())


def test_saliency_is_the_absolute_gradient(linear, linear_obs, key):
    result = attribute("saliency", linear, linear_obs, key, LINEAR)
    np.testing.assert_allclose(result.state, jnp.abs(linear.joints)[None].repeat(2, 0), rtol=1e-5)
    assert jnp.isnan(result.completeness_error).all()
    assert jnp.isnan(result.baseline_value).all()


def test_a_gradient_runs_the_model_once_and_its_baseline_once_more(linear, linear_obs, key):
    """Under jit every run of the model is a trace of its own."""
    runs = {}
    for name in ("saliency", "gradient_x_input", "integrated_gradients"):
        linear.traces.clear()
        attribute(name, linear, linear_obs, key, LINEAR)
        runs[name] = len(linear.traces)
    assert runs == {"saliency": 1, "gradient_x_input": 2, "integrated_gradients": 2}


def test_a_regression_on_the_masks_finds_what_changes_it(linear, linear_obs, key):
    """Of z, the first action, |change| is linear in the masks when all parts have one sign."""
    policy = linear.replace(
        pixels=0 * linear.pixels, table=0 * linear.table, joints=jnp.array([2.0, 0.0, 0.5])
    )
    obs = linear_obs.replace(state=jnp.ones_like(linear_obs.state))
    result = iss_regression(policy, obs, key, LINEAR, patch=(4, 4), samples=4000, chunk=500)
    np.testing.assert_allclose(result.state, [[2.0, 0.0, 0.5]] * 2, atol=0.15)
    change = ActionChange(policy.sample(obs, key).actions)
    result = iss_regression(policy, obs, key, change, patch=(4, 4), samples=400, chunk=100)
    assert (jnp.argmax(result.state, axis=1) == 0).all()


def test_iss_as_published_counts_what_else_was_replaced_too(linear, linear_obs, key):
    """r = 2 a + c / 2 for masks a and c of probability p: E[r a] = 2 p + p^2 / 2."""
    policy = linear.replace(
        pixels=0 * linear.pixels, table=0 * linear.table, joints=jnp.array([2.0, 0.0, 0.5])
    )
    obs = linear_obs.replace(state=jnp.ones_like(linear_obs.state))
    result = iss(policy, obs, key, LINEAR, patch=(4, 4), samples=4000, chunk=500)
    np.testing.assert_allclose(result.state, [[0.645, 0.225, 0.33]] * 2, atol=0.05)
    named = attribute("iss", policy, obs, key, LINEAR)
    published = iss(policy, obs, key, LINEAR, patch=(4, 4), samples=100, probability=0.3)
    np.testing.assert_array_equal(named.state, published.state)


def test_the_old_name_of_iss_as_published_works_and_says_so(linear, linear_obs, key):
    with pytest.warns(DeprecationWarning, match="'iss_masked_mean' is now called 'iss'"):
        old = attribute("iss_masked_mean", linear, linear_obs, key, LINEAR)
    new = attribute("iss", linear, linear_obs, key, LINEAR)
    np.testing.assert_array_equal(old.state, new.state)


@pytest.mark.parametrize("name", ["integrated_gradients", "occlusion"])
def test_the_chunk_size_makes_no_difference(name, linear, linear_obs, key):
    whole = attribute(name, linear, linear_obs, key, SQUARE)
    pieces = attribute(name, linear, linear_obs, key, SQUARE, chunk=5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), whole, pieces)


@pytest.mark.parametrize("name", OF_ANY_POLICY)
def test_new_weights_observations_and_readout_data_compile_nothing(name, linear, linear_obs, key):
    attribute(name, linear, linear_obs, key, LINEAR)
    traced = len(linear.traces)
    other = linear.replace(joints=linear.joints + 1)
    for i in range(3):
        obs = linear_obs.replace(state=linear_obs.state + i)
        attribute(name, other, obs, jax.random.key(i), SQUARE)
    assert len(linear.traces) == traced


def test_methods_run_inside_jit(linear, linear_obs, key):
    @jax.jit
    def program(policy, obs):
        return ATTRIBUTIONS["integrated_gradients"](policy, obs, key, SQUARE, patch=(4, 4))

    expected = attribute("integrated_gradients", linear, linear_obs, key, SQUARE)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        program(linear, linear_obs),
        expected,
    )


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("magic", {}, "no attribution is called 'magic'; choose one of integrated_gradients"),
        ("integrated_gradients", {"steps": 0}, "at least one step"),
        ("integrated_gradients", {"quadrature": "simpson"}, "gauss_legendre"),
        ("iss", {"probability": 1.0}, "between 0 and 1"),
        ("occlusion", {"chunk": 0}, "at least 1 run"),
    ],
)
def test_what_cannot_be_done_is_refused(name, options, says, linear, linear_obs, key):
    with pytest.raises(ValueError, match=says):
        attribute(name, linear, linear_obs, key, LINEAR, **options)


def test_a_memory_budget_sets_the_chunk_and_says_so(linear, linear_obs, key, capsys):
    whole = attribute("occlusion", linear, linear_obs, key, SQUARE)
    pieces = attribute("occlusion", linear, linear_obs, key, SQUARE, memory=2**20)
    assert "runs at a time in 1 MiB" in capsys.readouterr().out
    for camera, grid in whole.images.items():
        np.testing.assert_allclose(pieces.images[camera], grid, atol=1e-5)
    with pytest.raises(ValueError, match="raise the budget"):
        attribute("occlusion", linear, linear_obs, key, SQUARE, memory=1)
