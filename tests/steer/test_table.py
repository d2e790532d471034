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


def hidden(policy, obs, *edits):
    """What the VLM hands on; compiles faster than whole samples."""
    return policy.prefill(obs, edits=edits).hidden


def test_selecting_a_cause_gives_its_direction_at_its_strength(table, directions):
    for cause in ("base_0_rgb", "text", "dropped"):
        name, strength = CAUSES[cause]
        edit = table.select(table.index(cause), 0.5)
        direction = directions[name]
        np.testing.assert_array_equal(edit.vector, direction.vector * direction.gate[:, None])
        assert float(edit.strength) == pytest.approx(0.5 * strength)
        assert (edit.site, edit.tokens) == (direction.site, direction.tokens)
    for nothing in (table.index("state"), -1):
        assert float(table.select(nothing, 1.0).strength) == 0.0


def test_causes_and_strengths_do_not_recompile(table):
    traces = []

    @jax.jit
    def select(table, cause, strength):
        traces.append(None)
        return table.select(cause, strength)

    vectors = [select(table, jnp.int32(i % 4), jnp.float32(i / 5)).vector for i in range(50)]
    assert len(traces) == 1
    assert not np.array_equal(vectors[0], vectors[1])


def test_each_row_of_a_batch_gets_its_own_cause(table, policy, obs):
    causes = jnp.array([0, 1, 2, 3, -1, 1])
    strength = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    steered = hidden(policy, obs, table.select(causes, strength))
    bare = hidden(policy, obs)
    for row, cause in enumerate(causes.tolist()):
        alone = hidden(policy, obs, table.select(cause, strength[row]))
        np.testing.assert_allclose(steered[row], alone[row], atol=1e-5)
    np.testing.assert_array_equal(steered[jnp.array([2, 4, 5])], bare[jnp.array([2, 4, 5])])
    assert (np.abs(steered - bare).max((1, 2))[jnp.array([0, 1, 3])] > 1e-4).all()


def test_neuron_overwrites_stack_too(planted, obs):
    values = value_vectors(planted)
    top = top_names(values, 3)
    overwrites = {
        name: overwrite_concept(values, find_concept(values, top, name, [f"{name}*"]), 5.0)
        for name in ("slow", "quick")
    }
    table = cause_table(overwrites, {"text": ("slow", 1.0), "state": ("quick", 1.0)})
    both = hidden(planted, obs, table.select(jnp.arange(6) % 2))
    for parity, name in enumerate(("slow", "quick")):
        alone = hidden(planted, obs, overwrites[name].to_edit())
        np.testing.assert_allclose(both[parity::2], alone[parity::2], atol=1e-5)


def test_a_table_that_cannot_be_stacked_is_refused(directions):
    with pytest.raises(ValueError, match="share kind, site and tokens"):
        left = directions["left"]
        cause_table({"a": left, "b": left.replace(tokens="text")}, CAUSES)
    with pytest.raises(ValueError, match=r"directions \['right'\]: there are \['left'\]"):
        cause_table({"left": directions["left"]}, CAUSES)
    with pytest.raises(ValueError, match="at least one direction"):
        cause_table({}, CAUSES)


def test_an_unknown_cause_is_refused(table):
    with pytest.raises(ValueError, match="no cause 'weather'"):
        table.index("weather")
