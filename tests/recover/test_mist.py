"""What the monitor and the remedy promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect.inputs import Input
from mistjax.hooks import Tap
from mistjax.policies import Policy
from mistjax.recover import mist as mist_module
from mistjax.recover.mist import MistPolicy
from mistjax.steer.schedules import constant

TAP = Tap("action.resid", (-1,), "action", "mean")

KEY = jax.random.key(0)


def run(policy, obs, inferences=3):
    """Samples of consecutive inferences of one episode a row."""
    state, samples = policy.initial_state(obs.batch_size), []
    for i in range(inferences):
        sample = policy.sample(obs, jax.random.fold_in(KEY, i), state=state)
        state = sample.state
        samples.append(sample)
    return samples


def test_it_is_a_policy(make_mist, monitor, lacking):
    mist = make_mist(monitor)
    assert isinstance(mist, Policy) and not lacking(mist, Policy)


def test_without_an_alarm_the_actions_are_those_of_the_bare_policy(policy, make_mist, monitor, obs):
    for mist in (make_mist(monitor), MistPolicy(policy, monitor)):
        for i, sample in enumerate(run(mist, obs)):
            bare = policy.sample(obs, jax.random.fold_in(KEY, i))
            assert np.array_equal(sample.actions, bare.actions)
            assert not sample.aux["edited"].any()


@pytest.mark.parametrize("site", ["action.mlp_out", "vlm.mlp_out"])
def test_with_strength_0_the_actions_are_those_of_the_bare_policy(
    policy, make_mist, always, obs, site
):
    sample = run(make_mist(always, strength=0.0, site=site), obs, 1)[0]
    assert sample.aux["alarm"].all()
    bare = policy.sample(obs, jax.random.fold_in(KEY, 0))
    assert np.array_equal(sample.actions, bare.actions)


@pytest.mark.parametrize("site", ["action.mlp_out", "vlm.mlp_out"])
def test_at_an_alarm_the_actions_change_within_the_cap(policy, make_mist, always, obs, site):
    mist = make_mist(always, site=site)
    sample = run(mist, obs, 1)[0]
    bare = policy.sample(obs, jax.random.fold_in(KEY, 0))
    moved = np.abs(np.asarray(sample.actions - bare.actions))
    assert sample.aux["edited"].all()
    assert moved[..., :3].max() > 1e-3
    limits = mist.remedy.limits
    assert (moved <= np.asarray(limits.cap) + 1e-6)[..., :3].all()
    assert (moved[..., 4] == 0).all()


def test_only_rows_that_alarm_are_changed(policy, make_mist, always, obs):
    mist = make_mist(always)
    scores = np.asarray(run(mist, obs, 1)[0].aux["score"])
    middle = float(np.sort(scores)[1])
    some = always.replace(threshold=always.threshold.replace(upper=jnp.full(10, middle)))
    sample = run(make_mist(some), obs, 1)[0]
    bare = policy.sample(obs, jax.random.fold_in(KEY, 0))
    changed = np.asarray(sample.actions != bare.actions).any(axis=(1, 2))
    assert changed.tolist() == (scores > middle).tolist()
    assert changed.sum() == 1


def test_an_alarm_says_why_and_only_when_the_remedy_begins(make_mist, always, obs):
    first, second, _ = run(make_mist(always), obs)
    maps = ("why/base_0_rgb", "why/left_wrist_0_rgb", "why/text", "why/state")
    assert any(np.abs(first.aux[name]).max() > 0 for name in maps)
    assert all(np.abs(second.aux[name]).max() == 0 for name in maps)
    assert np.array_equal(first.aux["cause"], second.aux["cause"])
    assert (first.aux["cause"] >= 0).all()


def test_the_score_is_that_of_the_detector_on_the_bare_sample(policy, make_mist, monitor, obs):
    mist = make_mist(monitor)
    samples = run(mist, obs)
    state = monitor.initial_state(obs.batch_size)
    for i, sample in enumerate(samples):
        bare = policy.sample(obs, jax.random.fold_in(KEY, i), taps=monitor.reads.taps)
        state, reading = monitor.step(state, bare)
        np.testing.assert_allclose(sample.aux["score"], reading.score, rtol=1e-5)


def test_when_a_score_is_nan_expect_an_alarm(make_mist, monitor, obs):
    layers = jax.tree.map(lambda x: x * jnp.nan, monitor.detector.layers)
    broken = monitor.replace(detector=monitor.detector.replace(layers=layers))
    assert run(MistPolicy(make_mist(monitor).policy, broken), obs, 1)[0].aux["alarm"].all()


def test_when_actions_are_nan_expect_an_alarm_of_that_row_alone(policy, monitor, obs):
    broken = obs.replace(state=np.array(obs.state))
    broken.state[1] = np.nan
    alarm = run(MistPolicy(policy, monitor), broken, 1)[0].aux["alarm"]
    assert alarm.tolist() == [False, True, False]


def test_another_strength_direction_or_threshold_never_recompiles(make_mist, always, monitor, obs):
    run(make_mist(always), obs)
    before = mist_module._sample._cache_size()
    for mist in (make_mist(always, strength=2.0, cap=0.1), make_mist(monitor, strength=-1.0)):
        run(mist, obs)
    assert mist_module._sample._cache_size() == before


def test_extra_taps_come_back_and_the_monitors_own_do_not(make_mist, monitor, obs):
    tap = Tap("vlm.resid", (0,), "text", "mean")
    mist = make_mist(monitor)
    sample = mist.sample(obs, KEY, state=mist.initial_state(obs.batch_size), taps=(tap,))
    assert list(sample.taps) == [str(tap)]


def test_the_fingerprint_follows_the_monitor_and_the_remedy(policy, make_mist, monitor, always):
    prints = {
        p.spec.fingerprint
        for p in (policy, make_mist(monitor), make_mist(always), make_mist(monitor, strength=2.0))
    }
    assert len(prints) == 4


CHANGES = {
    "method": lambda mist: mist.replace(remedy=mist.remedy.replace(method="saliency")),
    "patch": lambda mist: mist.replace(remedy=mist.remedy.replace(patch=(4, 4))),
    "weight": lambda mist: mist.replace(remedy=mist.remedy.replace(weight=0.5)),
    "cap": lambda mist: mist.replace(
        remedy=mist.remedy.replace(limits=mist.remedy.limits.replace(cap=jnp.zeros(5)))
    ),
    "schedule": lambda mist: mist.replace(remedy=mist.remedy.replace(schedule=constant(0.5))),
    "tokens": lambda mist: mist.replace(
        remedy=mist.remedy.replace(table=mist.remedy.table.replace(tokens="action"))
    ),
    "site": lambda mist: mist.replace(
        remedy=mist.remedy.replace(table=mist.remedy.table.replace(site="action.resid"))
    ),
    "causes": lambda mist: mist.replace(
        remedy=mist.remedy.replace(table=mist.remedy.table.replace(causes=("a", "b", "c", "d")))
    ),
    "what the monitor reads": lambda mist: mist.replace(
        monitor=mist.monitor.replace(reads=Input.of_taps(TAP, pool="1.0"))
    ),
    "no remedy": lambda mist: mist.replace(remedy=None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_covers_what_no_array_tells(make_mist, monitor, change):
    mist = make_mist(monitor)
    again = make_mist(monitor)
    assert mist.spec.fingerprint == again.spec.fingerprint
    assert CHANGES[change](mist).spec.fingerprint != mist.spec.fingerprint
