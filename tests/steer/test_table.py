"""A traced index picks the direction; nothing recompiles, and rows stay apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import Tap
from mistjax.steer import (
    cause_table,
    difference_of_means,
    find_concept,
    overwrite_concept,
    top_names,
    value_vectors,
)

CAUSES = {
    "base_0_rgb": ("left", 1.0),
    "text": ("right", 2.0),
    "state": None,
    "dropped": ("right", 0.5),
}


@pytest.fixture(scope="module")
def directions(policy):
    tap = Tap("vlm.resid", (0, 1), "all", "mean")
    rng = np.random.default_rng(0)
    made = {
        name: difference_of_means(
            rng.normal(size=(3, 2, 32)).astype(np.float32),
            np.zeros((3, 2, 32), np.float32),
            tap,
            policy.spec,
        )
        for name in ("left", "right")
    }
    return made | {"right": made["right"].at_layers(1)}


@pytest.fixture(scope="module")
def table(directions):
    return cause_table(directions, CAUSES)


def test_selecting_a_cause_gives_its_direction_at_its_strength(table, directions, policy, obs, key):
    for cause, (name, strength) in (("base_0_rgb", CAUSES["base_0_rgb"]), ("text", CAUSES["text"])):
        by_table = table.select(table.index(cause), 0.5)
        by_vector = directions[name].to_edit(0.5 * strength)
        one, other = (
            policy.sample(obs, key, edits=(edit,)).actions for edit in (by_table, by_vector)
        )
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_causes_and_strengths_do_not_recompile(table, policy, obs, key):
    traces = []

    @jax.jit
    def act(table, cause, strength):
        traces.append(None)
        return policy.sample(obs, key, edits=(table.select(cause, strength),)).actions

    actions = [act(table, jnp.int32(i % 4), jnp.float32(i / 5)) for i in range(1, 51)]
    assert len(traces) == 1
    assert not np.array_equal(actions[0], actions[1])


def test_each_row_of_a_batch_gets_its_own_cause(table, policy, obs, key):
    causes = jnp.array([0, 1, 2, 3, -1, 1])
    strength = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    edit = table.select(causes, strength)
    steered = policy.sample(obs, key, edits=(edit,)).actions
    bare = policy.sample(obs, key).actions
    for row, cause in enumerate(causes.tolist()):
        alone = policy.sample(obs, key, edits=(table.select(cause, strength[row]),)).actions
        np.testing.assert_allclose(steered[row], alone[row], atol=1e-6)
    np.testing.assert_array_equal(steered[jnp.array([2, 4, 5])], bare[jnp.array([2, 4, 5])])
    assert (np.abs(steered - bare).max((1, 2))[[0, 1, 3]] > 1e-4).all()


def test_neuron_overwrites_stack_too(planted, obs, key):
    values = value_vectors(planted)
    top = top_names(values, 3)
    overwrites = {
        name: overwrite_concept(values, find_concept(values, top, name, [f"{name}*"]), 5.0)
        for name in ("slow", "quick")
    }
    table = cause_table(overwrites, {"text": ("slow", 1.0), "state": ("quick", 1.0)})
    both = planted.sample(obs, key, edits=(table.select(jnp.arange(6) % 2),)).actions
    slow = planted.sample(obs, key, edits=(overwrites["slow"].to_edit(),)).actions
    quick = planted.sample(obs, key, edits=(overwrites["quick"].to_edit(),)).actions
    np.testing.assert_allclose(both[::2], slow[::2], atol=1e-5)
    np.testing.assert_allclose(both[1::2], quick[1::2], atol=1e-5)


def test_a_table_that_cannot_be_stacked_is_refused(directions):
    with pytest.raises(ValueError, match="share kind, site and tokens"):
        cause_table({"a": directions["left"], "b": directions["left"].on_tokens("text")}, CAUSES)
    with pytest.raises(ValueError, match=r"directions \['right'\]: there are \['left'\]"):
        cause_table({"left": directions["left"]}, CAUSES)
    with pytest.raises(ValueError, match="at least one direction"):
        cause_table({}, CAUSES)


def test_an_unknown_cause_is_refused(table):
    with pytest.raises(ValueError, match="no cause 'weather'"):
        table.index("weather")
