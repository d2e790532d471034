"""The unsound input names itself; clean episodes stay quiet; a push is nobody's fault."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute.naming import describe_inputs
from mistjax.detect.artifact import FingerprintError
from mistjax.detect.novelty.artifact import load_inputs, save_inputs
from mistjax.detect.novelty.fit import (
    _unpadded,
    calibrate_inputs,
    evidence,
    fit_inputs,
    held_out,
    recorded,
)
from mistjax.stats import wilson
from tests.detect.novelty.conftest import LOOKS, changed, world

EPISODES = 20


def first_camera(change):
    def only(value, whole):
        value = np.array(value)
        value[:, :, 0] = change(value[:, :, 0], whole[:, :, 0])
        return value

    return only


def held(value, whole):
    return np.repeat(whole[:, 4:5], value.shape[1], 1)


FAULTS = {
    "camera, other colours": (0, {"grid": first_camera(lambda v, _: v + 0.5)}),
    "camera, no detail": (0, {"detail": first_camera(lambda v, _: v - 3)}),
    "camera, frozen": (
        0,
        {name: first_camera(held) for name in ("tokens", "grid", "detail")},
    ),
    "state, offset": (2, {"state": lambda v, _: v + np.array([1.0, 0, 0, 0, 0])}),
    "state, frozen": (2, {"state": held}),
    "text, other words": (3, {"prompt": lambda v, _: np.where(v == 3, 4, v)}),
    "text, unknown words": (3, {"prompt": lambda v, _: np.where(v == 3, 9, v)}),
}


def alarms(monitor, episodes):
    """(look of each episode's first alarm or -1, what is named there)."""
    found = evidence(monitor, episodes)
    first = found.unsound.argmax(1)
    rows = np.arange(len(first))
    return np.where(found.unsound.any(1), first, -1), found.named[rows, first]


@pytest.mark.parametrize("name", FAULTS)
def test_the_unsound_input_is_named_at_once(monitor, name):
    which, change = FAULTS[name]
    first, named = alarms(monitor, changed(world(EPISODES, seed=5), **change))
    at_onset = first == 5
    assert at_onset.mean() > 0.7
    assert (named[at_onset] == which).mean() > 0.9


def test_a_push_is_no_inputs_fault(monitor):
    first, named = alarms(monitor, world(EPISODES, seed=5, push=(5, 1.0)))
    at_onset = first == 5
    assert at_onset.mean() > 0.7
    assert (named[at_onset] == len(monitor.inputs)).mean() > 0.8


def test_what_a_push_moved_is_not_held_against_the_state_later(monitor):
    found = evidence(monitor, world(EPISODES, seed=5, push=(5, 1.0)))
    nobodys = found.unsound[:, 5] & (found.named[:, 5] == len(monitor.inputs))
    assert np.mean(found.unsound[nobodys, 6]) < 0.2


def test_clean_episodes_keep_the_promise_over_all_inputs_together(monitor):
    first, named = alarms(monitor, world(250, seed=9))
    false = int((first >= 0).sum())
    assert wilson(false, 250).low <= 0.1
    assert false > 0
    assert (named[first < 0] == -1).all()


def test_scores_are_sized_on_episodes_of_every_task():
    held = held_out(100)
    assert held.sum() == 30
    for tasks in (10, 20):  # a suite's episodes lie task by task
        assert (held.reshape(tasks, -1).sum(1) > 0).all()


def test_a_bound_with_confidence_is_wider(fitted):
    calibration = world(250, seed=1)
    plain = calibrate_inputs(fitted, calibration, 0.1).threshold
    sure = calibrate_inputs(fitted, calibration, 0.1, 0.95).threshold
    assert sure.upper[0] > plain.upper[0]
    assert "for 95% of calibration sets" in sure.describe()


def test_where_it_is_unsound_is_in_the_evidence(monitor):
    def corner(value, _):
        value = np.array(value)
        value[:, :, 1, 2:4, 5:7] += 1.0
        return value

    found = evidence(monitor, changed(world(EPISODES, seed=5), grid=corner))
    cells = found.cells[:, 5, 1]
    inside = np.zeros((8, 8), bool)
    inside[2:4, 5:7] = True
    assert (cells[:, inside].min(1) > cells[:, ~inside].max(1)).mean() > 0.9
    assert (found.cells[:, 6:] == 0).all()
    clean = world(EPISODES, seed=5)
    found = evidence(monitor, changed(clean, state=lambda v, _: v + np.eye(5)[1]))
    assert (np.abs(found.entries[:, 5]).argmax(1) == 1).all()
    found = evidence(
        monitor, changed(world(EPISODES, seed=5), prompt=lambda v, _: np.where(v == 4, 3, v))
    )
    assert (found.words[:, 5] == (np.arange(6) == 2)).all()


def test_what_is_not_finite_is_unsound(monitor):
    def broken(value, _):
        return np.where(np.arange(5) == 1, np.nan, value)

    first, named = alarms(monitor, changed(world(EPISODES, seed=5), state=broken))
    assert (first == 5).all()
    assert (named == 2).all()


def test_rows_do_not_see_each_other(monitor):
    clean, other = (
        world(EPISODES, seed=5),
        changed(world(EPISODES, seed=5), grid=lambda v, _: v + 0.5),
    )
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:2], b[2:]]), clean, other)
    one, two = evidence(monitor, clean), evidence(monitor, mixed)
    np.testing.assert_allclose(one.ratios[:2], two.ratios[:2], rtol=1e-5, atol=1e-5)


def test_a_monitor_is_read_back_and_belongs_to_its_policy(monitor, tmp_path):
    save_inputs(tmp_path, monitor, "policy-a", {"note": 1})
    back = load_inputs(tmp_path, "policy-a")
    one, two = (evidence(m, world(EPISODES, seed=5)) for m in (monitor, back))
    np.testing.assert_allclose(one.ratios, two.ratios, rtol=0.05, atol=0.02)
    assert back.threshold.describe() == monitor.threshold.describe()
    assert back.inputs == monitor.inputs
    with pytest.raises(FingerprintError, match="fit-inputs"):
        load_inputs(tmp_path, "policy-b")
    card = json.loads((tmp_path / "inputs.json").read_text())
    (tmp_path / "inputs.json").write_text(json.dumps({**card, "version": 99}))
    with pytest.raises(ValueError, match="format version 99"):
        load_inputs(tmp_path, "policy-a")
    with pytest.raises(FileNotFoundError, match="fit-inputs"):
        load_inputs(tmp_path / "none", "policy-a")


def test_too_little_to_fit_to_is_refused(policy):
    with pytest.raises(ValueError, match="at least ten"):
        fit_inputs(policy, world(9))
    with pytest.raises(ValueError, match="--inputs"):
        recorded([])


def test_padding_of_the_state_is_left_out(fitted):
    wide = world(EPISODES)
    padded = np.pad(wide.readings.state, ((0, 0), (0, 0), (0, 3)))
    wide = wide.replace(readings=wide.readings.replace(state=padded))
    assert _unpadded(wide).readings.state.shape[-1] == 5
    assert evidence(fitted, wide).entries.shape == (EPISODES, LOOKS, 5)


def test_a_memory_holds_the_last_looks_only(monitor):
    memory = monitor.initial_state(2)
    sizes = jax.tree.map(jnp.shape, memory)
    readings = jax.tree.map(lambda x: jnp.asarray(x)[:2, 0], world(2).readings)
    after, _ = jax.jit(monitor.step)(memory, readings)
    assert jax.tree.map(jnp.shape, after) == sizes
    assert dataclasses.fields(after)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("camera, other colours", r"Unsound: camera base_0_rgb \(.*cells: rows 1 to 8"),
        (
            "state, offset",
            r"Unsound: the state \(dead reckoning .*most in x: \+.*cameras agree",
        ),
        ("text, other words", r"Unsound: the instruction \(changed words .*, token 2\."),
    ],
)
def test_the_sentence_says_the_input_and_the_evidence(monitor, name, says):
    found = evidence(monitor, changed(world(EPISODES, seed=5), **FAULTS[name][1]))
    look = jax.tree.map(lambda x: x[:, 5], found)
    rows = np.flatnonzero(look.unsound & (look.named == FAULTS[name][0]))
    assert re.search(says, describe_inputs(monitor, look, int(rows[0]), ("x", "y", "z")))


def test_the_sentence_about_a_push_blames_no_input(monitor):
    found = evidence(monitor, world(EPISODES, seed=5, push=(5, 1.0)))
    look = jax.tree.map(lambda x: x[:, 5], found)
    row = int(np.flatnonzero(look.named == len(monitor.inputs))[0])
    assert describe_inputs(monitor, look, row).startswith("None of the inputs")
    quiet = jax.tree.map(lambda x: x[:, 0], found)
    row = int(np.flatnonzero(~quiet.unsound)[0])
    assert "as in clean episodes" in describe_inputs(monitor, quiet, row)


def test_a_later_sentence_gives_the_evidence_of_the_input_that_it_names(monitor):
    found = evidence(
        monitor, changed(world(EPISODES, seed=5), **FAULTS["camera, other colours"][1])
    )
    look = jax.tree.map(lambda x: np.array(x[:, 5]), found)
    row = int(np.flatnonzero(look.unsound & (look.named == 0))[0])
    look.ratios[row, 2, 2] = 1e3  # the state drifts by now, too
    said = describe_inputs(monitor, look, row)
    assert re.search(r"camera base_0_rgb \((level|change) .*; next the state with 1000\.0", said)
