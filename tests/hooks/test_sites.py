"""Sites, token selectors and taps mean what they say and refuse the rest."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks.sites import Tap, TokenLayout, reduce_tokens, resolve_layers

LAYOUT = TokenLayout(8, {"base": (0, 2), "image": (0, 4), "text": (4, 8)})
VALID = jnp.array([[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 0]], bool)


@pytest.mark.parametrize(
    "tap",
    [
        Tap("vlm.mlp_out"),
        Tap("vlm.mlp_out", (8,), "text", "mean"),
        Tap("action.attn_heads", (0, -1), "action:0-2"),
        Tap("vision.resid", None, "last", "max"),
    ],
    ids=str,
)
def test_a_tap_survives_its_text(tap):
    assert Tap.parse(str(tap)) == tap


@pytest.mark.parametrize("text", ["vlm.mlp_out", "vlm.mlp_out@a/all/mean", "vlm.mlp_out@1/all"])
def test_a_text_that_is_no_tap_is_refused(text):
    with pytest.raises(ValueError, match="is not a tap"):
        Tap.parse(text)


@pytest.mark.parametrize("site", ["vlm", "vlm.logits", "hand.resid", ""])
def test_an_unknown_site_is_refused(site):
    with pytest.raises(ValueError, match="is not a site"):
        Tap(site)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("all", (0, 8)),
        ("last", (0, 8)),
        ("text", (4, 8)),
        ("text:1-3", (5, 7)),
        ("text:2", (6, 7)),
        ("image", (0, 4)),
    ],
)
def test_a_selector_names_a_run_of_tokens(selector, expected):
    assert LAYOUT.select(selector) == expected


@pytest.mark.parametrize("selector", ["state", "text:3-5", "text:2-2", "text:4", "All"])
def test_a_selector_outside_the_layout_is_refused(selector):
    with pytest.raises(ValueError, match="token selector"):
        LAYOUT.select(selector)


def test_a_mask_holds_only_valid_tokens():
    assert LAYOUT.mask("text:1-3", VALID).astype(int).tolist() == [
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_last_is_the_last_valid_token_of_each_row():
    assert jnp.argmax(LAYOUT.mask("last", VALID), axis=1).tolist() == [5, 4]
    assert LAYOUT.mask("last", VALID).sum(axis=1).tolist() == [1, 1]
    assert not LAYOUT.mask("last", jnp.zeros((1, 8), bool)).any()


def test_layers_count_from_the_end_and_must_exist():
    assert resolve_layers((0, -1, 2), 4) == (0, 3, 2)
    assert resolve_layers(None, 3) == (0, 1, 2)
    with pytest.raises(ValueError, match=r"\[4, -5\].*4 layers"):
        resolve_layers((4, -5, 0), 4)


def test_reductions_see_only_the_masked_tokens():
    value = jnp.arange(16.0).reshape(2, 8, 1)
    mask = VALID.at[1].set(False)
    assert reduce_tokens(value, mask, "mean").tolist() == [[2.5], [0.0]]
    assert reduce_tokens(-value, mask, "max").tolist() == [[0.0], [0.0]]
    assert reduce_tokens(value, mask, "max").tolist() == [[5.0], [0.0]]


def unchecked(layers):
    """A tap as it is made where annotations are not checked."""
    tap = object.__new__(Tap)
    inspect.unwrap(Tap.__init__)(tap, "vlm.resid", layers)
    return tap


@pytest.mark.parametrize("layers", [(), (True,), (1.0,), ("1",)])
def test_layers_that_are_no_numbers_are_refused(layers):
    with pytest.raises((ValueError, TypeError)):
        unchecked(layers)


def test_numpys_integers_are_layers():
    tap = unchecked(np.arange(2))
    assert tap == Tap("vlm.resid", (0, 1)) and str(tap) == "vlm.resid@0,1/all/tokens"


@pytest.mark.parametrize("selector", ["text:-1", "text:1-", "text:a", "text:2-1", "text:1:2"])
def test_a_range_of_tokens_that_is_none_is_refused(selector):
    with pytest.raises(ValueError, match="token selector"):
        LAYOUT.select(selector)


@pytest.mark.parametrize(
    ("tap", "shape", "axes"),
    [
        (Tap("vlm.resid", reduce="mean"), (4, 2, 8), "layer batch width"),
        (Tap("action.resid", reduce="max"), (10, 4, 2, 8), "step layer batch width"),
        (Tap("vlm.resid"), (4, 2, 5, 8), "layer batch token width"),
        (Tap("vlm.attn_heads"), (4, 2, 5, 3, 8), "layer batch token head width"),
        (Tap("action.attn_heads", reduce="mean"), (9, 4, 2, 3, 8), "step layer batch head width"),
    ],
    ids=lambda value: str(value),
)
def test_a_tap_names_the_axes_of_its_value(tap, shape, axes):
    assert tap.axes(len(shape)) == tuple(axes.split())
    rest = [size for name, size in zip(tap.axes(len(shape)), shape, strict=True) if name != "batch"]
    assert tap.batch_first(np.zeros(shape)).shape == (2, *rest)
    assert tap.batch_first(jnp.zeros(shape)).shape == (2, *rest)


def test_a_value_of_another_tap_is_refused():
    with pytest.raises(ValueError, match="5 axes: expected layer, batch, width, or one more"):
        Tap("vlm.resid", reduce="mean").axes(5)
