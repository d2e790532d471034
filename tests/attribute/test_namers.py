"""One interface for everybody who is asked which input is unsound."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mistjax.envs  # noqa: F401 (registers the board)
from mistjax.attribute import ActionValue
from mistjax.attribute.namers import NAMERS, NONE, Clean, Moment, Naming, naming_of, novelty
from mistjax.attribute.registry import OF_TOKENS
from mistjax.demo import SHIPPED
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.monitor import InputEvidence
from mistjax.envs.faults.battery import Mixture
from mistjax.envs.faults.make import make_faulty
from mistjax.policies.load import load_policy


@pytest.fixture(scope="module")
def policy():
    return load_policy(SHIPPED / "board_pi0")


@pytest.fixture(scope="module")
def monitor(policy):
    return load_inputs(SHIPPED / "board_mist", policy.spec.fingerprint)


@pytest.mark.parametrize("name", [n for n in NAMERS if n not in (*OF_TOKENS, "whole_ablation")])
def test_every_namer_answers_in_the_same_form(name, linear, linear_obs):
    action = ActionValue(jnp.array([[1.0, 0.0]]))
    moment = Moment(linear_obs, jax.random.split(jax.random.key(0), 2), action, None)
    found = NAMERS[name](linear, moment)
    assert found.inputs == ("front", "wrist", "state", "text")
    assert found.evidence.shape == (2, 5)
    assert np.isfinite(found.evidence).all()
    assert set(found.names()) <= {*found.inputs, NONE}
    if name != "chance":  # the linear policy does not look through its wrist camera
        assert not found.evidence[:, [1, 4]].any() or name.startswith("iss")


@pytest.mark.slow
def test_on_a_shipped_policy_a_black_camera_is_named_by_its_novelty(policy, monitor):
    sound = Mixture().to_json()  # sensor noise, as the monitor was calibrated with
    env: Any = make_faulty("mistjax/Board-v0", sound, policy.spec.execute_steps)
    raw, _ = env.reset(seed=0)
    obs = policy.prepare([raw, {**raw, "observation/image": 0 * raw["observation/image"]}])
    readout = ActionValue(jnp.ones((policy.config.action_horizon, policy.config.action_dim)))
    keys = jax.random.split(jax.random.key(0), 2)
    moment = Moment(obs, keys, readout, monitor.initial_state(2))
    assert novelty(monitor)(policy, moment).names() == [NONE, "base_0_rgb"]
    for name in (*(n for n in OF_TOKENS if n in NAMERS), "whole_occlusion", "whole_ablation"):
        found = NAMERS[name](policy, moment)
        assert found.inputs == monitor.inputs
        assert (found.evidence[0, :4] > 0).all()


def evidence(monitor, ratios, named, threshold=2.0):
    rows = len(ratios)
    cells = jnp.zeros((rows, 2, 8, 8))
    return InputEvidence(
        ratios=jnp.asarray(ratios, jnp.float32)[:, :, None] * jnp.array([[[1.0, 0.5, 0.0]]]),
        score=jnp.max(jnp.asarray(ratios), 1),
        threshold=jnp.full(rows, threshold),
        unsound=jnp.asarray(ratios).max(1) > threshold,
        suspect=jnp.argmax(jnp.asarray(ratios), 1),
        blamed=jnp.asarray(named),
        named=jnp.asarray(named),
        sides=jnp.zeros(rows),
        cells=cells,
        entries=jnp.zeros((rows, 5)),
        words=jnp.zeros((rows, 20), bool),
    )


def test_the_monitors_evidence_is_over_its_threshold_and_a_cleared_state_speaks_for_none(monitor):
    ratios = [[3.0, 1, 1, 0], [1, 1, 6, 0], [1, 1, 6, 0], [1, 1, 1, 1], [np.nan, 1, 1, 1]]
    found = naming_of(monitor, evidence(monitor, ratios, [0, 4, 2, -1, 0]))
    assert found.names() == ["base_0_rgb", NONE, "state", NONE, "base_0_rgb"]
    np.testing.assert_allclose(found.evidence[0], [1.5, 0.5, 0.5, 0, 1])
    np.testing.assert_allclose(found.evidence[1], [0.5, 0.5, 0, 0, 3])


def naming(rows):
    return Naming(jnp.asarray(rows, jnp.float32), None, ("a", "b"))


def test_what_is_large_on_clean_episodes_too_is_no_evidence():
    """Input a always has ten times the evidence of b: only b's change says anything."""
    rng = np.random.default_rng(0)
    usual = np.stack([10 + rng.random(200), 1 + 0.1 * rng.random(200), np.zeros(200)], 1)
    clean = Clean.of(usual, alpha=0.1)
    plain = [clean(naming(usual)).names().count(name) for name in ("a", "b", NONE)]
    assert plain[2] == 180
    moments = naming([[10.5, 3.0, 0], [30.0, 1.0, 0], [10.5, 1.0, 0]])
    assert moments.names() == ["a", "a", "a"]
    assert clean(moments).names() == ["b", "a", NONE]


def test_no_evidence_at_all_names_none():
    assert naming([[0.0, 0.0, 0.0]]).names() == [NONE]


def test_too_few_clean_moments_are_refused():
    with pytest.raises(ValueError, match="at least ten"):
        Clean.of(np.ones((9, 3)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Clean.of(np.ones((10, 3)), alpha=1.0)
