"""Affine maps: what they fit, what they leave alone, and their control."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Tap
from mistjax.steer import affine_map, cause_table

TAP = Tap("vision.resid", None, "image")


def dimmed(raw):
    """The same scenes in less light."""
    return [
        {k: (v * 0.4).astype(v.dtype) if "image" in k else v for k, v in row.items()} for row in raw
    ]


def scenes(raw, seeds):
    """More scenes of the same kind."""

    def one(seed):
        rng = np.random.default_rng(seed)
        images = {
            k: rng.integers(0, 256, v.shape, np.uint8) for k, v in raw.items() if "image" in k
        }
        return {**raw, **images}

    return [one(seed) for seed in seeds]


@pytest.fixture(scope="module")
def fitted(policy, raw):
    bright = scenes(raw[0], range(100, 140))
    return affine_map(policy, bright, dimmed(bright), TAP, jax.random.key(0), batch=20, why="light")


def seen(policy, raw, *edits):
    values = policy.sample(policy.prepare(raw), jax.random.key(1), edits=edits, taps=(TAP,))
    return np.asarray(values.taps[str(TAP)])


def test_on_new_scenes_the_map_undoes_most_of_the_change_of_appearance(policy, raw, fitted):
    bright = scenes(raw[0], range(200, 206))
    wanted, dark = seen(policy, bright), seen(policy, dimmed(bright))
    mapped = seen(policy, dimmed(bright), fitted.to_edit())
    for layer in range(len(wanted)):
        left = np.sum((mapped - wanted)[layer] ** 2) / np.sum((dark - wanted)[layer] ** 2)
        assert left < 0.5, (layer, left)
    half = seen(policy, dimmed(bright), fitted.to_edit(0.5))
    assert (
        np.sum((mapped - wanted) ** 2) < np.sum((half - wanted) ** 2) < np.sum((dark - wanted) ** 2)
    )


def test_it_is_anchored_in_the_wanted_appearance(policy, raw, fitted):
    bright = scenes(raw[0], range(200, 206))
    free = affine_map(
        policy,
        scenes(raw[0], range(100, 140)),
        dimmed(scenes(raw[0], range(100, 140))),
        TAP,
        jax.random.key(0),
        batch=20,
        anchored=False,
    )
    wanted = seen(policy, bright)

    def moved(edit):
        return np.sum((seen(policy, bright, edit) - wanted) ** 2)

    assert moved(fitted.to_edit()) < moved(free.to_edit())


def test_the_control_has_the_same_singular_values_in_other_directions(fitted):
    control = fitted.control(jax.random.key(3))
    for ours, theirs in zip(fitted.weight, control.weight, strict=True):
        values = [np.linalg.svd(w, compute_uv=False) for w in (ours, theirs)]
        np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)
    lengths = [jnp.linalg.norm(m.bias, axis=-1) for m in (fitted, control)]
    np.testing.assert_allclose(*lengths, rtol=1e-3)
    assert np.abs(control.weight - fitted.weight).max() > 0.1 * np.abs(fitted.weight).max()
    assert control.provenance.details["control_of"]["maker"] == "affine_map"


def test_a_table_picks_the_map_by_row_and_leaves_the_other_rows_alone(policy, raw, fitted):
    table = cause_table({"light": fitted}, {"base_0_rgb": ("light", 1.0), "state": None})
    rows = jnp.array([table.index("base_0_rgb"), table.index("state"), -1])
    before = seen(policy, raw[:3])
    after = seen(policy, raw[:3], table.select(rows))
    np.testing.assert_array_equal(after[:, 1:], before[:, 1:])
    whole = seen(policy, raw[:3], fitted.to_edit())
    np.testing.assert_allclose(after[:, 0], whole[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"away": []}, "6 and 0 observations are not pairs"),
        ({"tap": dataclasses.replace(TAP, reduce="mean")}, "keeps its tokens"),
        ({"tap": Tap("action.resid", None, "action")}, "keeps its tokens"),
    ],
)
def test_what_cannot_be_fitted_is_refused(policy, raw, change, message):
    arguments = {"towards": raw, "away": raw, "tap": TAP, **change}
    with pytest.raises(ValueError, match=message):
        affine_map(policy, key=jax.random.key(0), **arguments)
