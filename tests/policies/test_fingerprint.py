"""A fingerprint covers everything in a value, and is the same in every process."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Add, Scale, Tap
from mistjax.policies.fingerprint import fingerprint

VALUES = [
    None,
    0,
    0.0,
    -0.0,
    False,
    "0",
    b"0",
    (),
    [1, [2]],
    [[1], 2],
    {"a": 1},
    {"a": "1"},
    {"1": "a"},
    np.zeros(2, np.float32),
    np.zeros(2, np.float64),
    np.zeros((2, 1), np.float32),
    np.array([0.0, -0.0], np.float32),
    jnp.array([np.nan, 0.0]),
    jax.random.key(0),
    jax.random.key(1),
    Tap("vlm.resid"),
    Tap("vlm.resid", reduce="mean"),
    Add(vector=jnp.ones(2)),
    Add(vector=jnp.ones(2), tokens="text"),
    Scale(factor=jnp.ones(2)),
    Add,
    Scale,
    fingerprint,
    functools.partial(Tap, "vlm.resid"),
    functools.partial(Tap, "vlm.resid", reduce="max"),
]


def test_values_that_differ_in_anything_have_different_fingerprints():
    assert len({fingerprint(value) for value in VALUES}) == len(VALUES)


def test_equal_values_have_one_fingerprint_whatever_the_order_and_the_device():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(jnp.arange(3)) == fingerprint(np.arange(3, dtype=np.int32))
    assert fingerprint(Tap("vlm.resid")) == fingerprint(dataclasses.replace(Tap("vlm.resid")))
    assert fingerprint("a", "bc") != fingerprint("ab", "c")


@pytest.mark.parametrize("value", [object(), lambda: 0, {1, 2}])
def test_what_could_change_unseen_is_refused(value):
    with pytest.raises(TypeError, match="has no fingerprint"):
        fingerprint([value])
