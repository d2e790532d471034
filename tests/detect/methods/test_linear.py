"""Linear probes and ensembles of detectors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect import Artifact, Episodes, Input, fit_detector, load_detector, save_detector
from mistjax.detect.detector import score_episodes
from mistjax.detect.methods.ensemble import combine
from mistjax.detect.methods.linear import fit_linear_probe
from mistjax.detect.metrics import summary

OPTIONS = (
    {},
    {"baseline": 3},
    {"horizon": 8},
    {"within_tasks": True},
    {"baseline": 2, "horizon": 5, "within_tasks": True},
)


def scores(detector, episodes):
    return np.asarray(score_episodes(detector, episodes.features, episodes.mask))


def auc(detector, episodes):
    return summary(scores(detector, episodes), episodes)["roc_auc"]


def gaussian_episodes(offset_per_task=0.0, steps=12, n=120, seed=0, drift=None):
    """Failures lie one unit along the first of four axes; tasks may lie far apart along it."""
    rng = np.random.default_rng(seed)
    success, task = np.arange(n) % 2 == 0, rng.integers(0, 4, n)
    features = []
    for ok, k in zip(success, task, strict=True):
        x = rng.normal(size=(steps, 4)) * (1, 1, 3, 0.1)
        time = np.ones(steps) if drift is None else drift(np.arange(steps) / (steps - 1))
        x[:, 0] += (not ok) * time
        x[:, 0] += offset_per_task * k
        features.append(x)
    return Episodes.from_sequences(features, success, task)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_probe_finds_the_signal_in_fresh_episodes(episodes, fresh_episodes, options):
    probe = fit_linear_probe(episodes, **options)
    assert auc(probe, fresh_episodes) > 0.9
    shuffled = dataclasses.replace(episodes, success=np.roll(episodes.success, 1))
    assert auc(fit_linear_probe(shuffled, **options), fresh_episodes) < 0.75


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_score_is_the_logit_and_differentiable(episodes, options):
    probe = fit_linear_probe(episodes, **options)
    state, x = probe.init_state(2), jnp.asarray(episodes.features[:2])
    for t in range(3):
        logit = probe.logit(state, x[:, t])
        state, score = jax.jit(probe.step)(state, x[:, t])
        np.testing.assert_allclose(score, logit, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda v: probe.logit(state, v).sum())(x[:, 3])
    clock = min(3 / options["horizon"], 1) if "horizon" in options else 0
    wanted = probe.weights + clock * probe.drift
    share = 1.0 if options.get("baseline", 0) <= 3 else 0.0
    np.testing.assert_allclose(gradient[0], share * wanted, rtol=1e-4, atol=1e-6)


def test_without_shrinkage_it_is_fishers_discriminant():
    episodes = gaussian_episodes(n=400)
    probe = fit_linear_probe(episodes, shrinkage=1e-6)
    direction = np.asarray(probe.weights)
    assert (np.abs(direction - [1, 0, 0, 0]) < 0.15 * np.array([1, 1, 1, 10])).all()
    assert abs(float(probe.bias) + 0.5) < 0.1


def test_differences_inside_tasks_are_found_where_tasks_lie_far_apart():
    train = gaussian_episodes(offset_per_task=10.0)
    unseen = gaussian_episodes(seed=1)
    plain = auc(fit_linear_probe(train, shrinkage=0.1), unseen)
    inside = fit_linear_probe(train, shrinkage=0.1, within_tasks=True)
    direction = np.abs(np.asarray(inside.weights)) * (1, 1, 3, 0.1)
    assert direction.argmax() == 0
    assert auc(inside, unseen) >= plain


def test_a_baseline_takes_out_what_is_constant_in_an_episode():
    ramp = {"drift": lambda t: 2 * t, "n": 200}
    train, moved = (
        gaussian_episodes(**ramp),
        gaussian_episodes(offset_per_task=20.0, seed=1, **ramp),
    )
    assert auc(fit_linear_probe(train), moved) < 0.7
    assert auc(fit_linear_probe(train, baseline=2), moved) > 0.8


def test_a_baseline_at_one_step_is_the_change_since_the_first():
    episodes = gaussian_episodes()
    probe = fit_linear_probe(episodes, baseline=1)
    x = np.asarray(episodes.features)
    wanted = (x - x[:, :1]) @ np.asarray(probe.weights) + float(probe.bias)
    np.testing.assert_allclose(scores(probe, episodes), wanted, rtol=1e-4, atol=1e-4)


def test_a_clock_lets_the_direction_turn():
    def turn(t):
        return 2 * (2 * t - 1)  # failures are low at first and high in the end

    train, fresh = gaussian_episodes(drift=turn), gaussian_episodes(drift=turn, seed=1)
    last = fresh.lengths - 1
    failed = ~fresh.success
    turned = scores(fit_linear_probe(train, horizon=11), fresh)
    assert turned[failed, 0].mean() > turned[~failed, 0].mean() + 0.5
    assert turned[failed, last[failed]].mean() > turned[~failed, last[~failed]].mean() + 0.5


def test_long_episodes_count_no_more_than_short_ones():
    episodes = gaussian_episodes(n=60)
    x, success = list(np.asarray(episodes.features)), episodes.success
    longer = [np.concatenate([f] * 3) if i == 0 else f for i, f in enumerate(x)]
    a = fit_linear_probe(Episodes.from_sequences(x, success))
    b = fit_linear_probe(Episodes.from_sequences(longer, success))
    np.testing.assert_allclose(a.weights, b.weights, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"shrinkage": 0.0}, "shrinkage is 0.0"),
        ({}, {"baseline": -1}, "baseline -1"),
        ({"success": np.ones(60, bool)}, {}, "needs successes and"),
        ({"features": np.full((60, 13, 8), np.nan, np.float32)}, {}, "NaN or Inf"),
        ({"task_id": np.arange(60)}, {"within_tasks": True}, "no task has both outcomes"),
    ],
)
def test_a_bad_argument_says_what_was_expected(episodes, change, options, message):
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(dataclasses.replace(episodes, **change), **options)


def test_an_ensemble_is_the_mean_of_its_members_z_scores(episodes):
    members = [fit_linear_probe(episodes), fit_linear_probe(episodes, baseline=2)]
    both = combine(members, episodes)
    early = np.arange(episodes.mask.shape[1]) < episodes.earliest_stop[:, None]
    parts = [scores(m, episodes) for m in members]
    wanted = np.mean([(s - s[early].mean()) / s[early].std() for s in parts], axis=0)
    np.testing.assert_allclose(scores(both, episodes)[early], wanted[early], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="at least one"):
        combine([], episodes)
    blind = dataclasses.replace(members[0], weights=jnp.zeros(episodes.dim))
    with pytest.raises(ValueError, match=r"members \[1\] score a constant"):
        combine([members[0], blind], episodes)


def test_an_ensemble_of_weak_members_beats_each(episodes, fresh_episodes):
    halves = [fit_linear_probe(episodes.take(np.arange(i, 60, 7))) for i in range(3)]
    together = auc(combine(halves, episodes), fresh_episodes)
    assert together > np.mean([auc(h, fresh_episodes) for h in halves])


@pytest.mark.parametrize("name", ["linear_probe", "ensemble"])
def test_both_are_in_the_registry_and_survive_the_disk(name, episodes, tmp_path):
    detector = fit_detector(name, episodes, standardised=True)
    save_detector(tmp_path, Artifact(detector, "p", Input(features=("t",))))
    back = load_detector(tmp_path, "p").detector
    np.testing.assert_array_equal(scores(back, episodes), scores(detector, episodes))
