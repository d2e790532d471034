"""What is executed under each strategy, on chunks whose entries say what they are."""

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.realtime.strategies import NAMES, Strategy, quintic

H = 8
OLD, NEW = (np.arange(H, dtype=np.float32) + base for base in (100, 200))


def planned(name, delay, *, begun=True, sound=True, old=OLD, known=None, executed=4, history=None):
    strategy = Strategy(name, delay, executed, H)
    known = np.arange(H) < H - strategy.round if known is None else known
    beyond = strategy.reach - H
    known, old = np.pad(known, (0, beyond)), np.pad(old, (0, beyond))
    chunks = jnp.asarray(old, jnp.float32)[None, None, :, None]
    plan, there = strategy.plan(
        chunks,
        jnp.asarray(known)[None, None],
        jnp.asarray(NEW)[None, :, None],
        jnp.array([sound]),
        jnp.array([begun]),
    )
    return [float(x) if on else None for x, on in zip(plan[0, :, 0], there[0], strict=True)]


def test_naive_switches_to_the_new_chunk_where_it_stands_then():
    assert planned("naive", 2) == [100, 101, 202, 203, 204, 205, 206, 207]


def test_naive_without_delay_is_the_chunk():
    assert planned("naive", 0) == list(NEW)


@pytest.mark.parametrize("name", ["naive", "rtc", "rtc_closed", "rail", "vlash"])
def test_an_episode_begins_by_standing_still(name):
    plan = planned(name, 2, begun=False, known=np.zeros(H, bool))
    assert plan[:H] == [None, None, *NEW[:6]]


def test_waiting_is_standing_still_in_every_round():
    assert planned("wait", 3) == [None] * 3 + [*NEW]
    assert Strategy("wait", 3, 4, H).round == 7


def test_vlash_begins_its_chunk_when_it_is_there():
    assert planned("vlash", 2) == [100, 101, *NEW]


@pytest.mark.parametrize("delay", [6, 9])
def test_a_chunk_that_begins_late_is_executed_as_far_as_the_others(delay):
    assert planned("wait", delay)[: delay + 4] == [None] * delay + [*NEW[:4]]
    assert planned("vlash", delay)[delay:] == [*NEW]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("wait", "vlash")])
def test_a_chunk_that_is_over_before_it_arrives_is_never_executed(name):
    assert planned(name, H) == [None] * H


def test_what_ran_out_is_standing_still():
    assert planned("naive", 6, executed=4)[:6] == [100, 101] + [None] * 4


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("wait", "ensemble")])
def test_after_a_chunk_that_is_none_the_old_one_goes_on_and_then_nothing(name):
    assert planned(name, 2, sound=False)[:H] == [100, 101] + [None] * 6


def test_the_ensemble_is_act_s():
    """exp(-m i), i = 0 for the oldest."""
    strategy = Strategy("ensemble", 1, 2, H, decay=0.5)
    older, oldest = OLD, OLD - 50
    known = np.array([[i < 6 for i in range(H)], [i < 4 for i in range(H)]])
    plan, there = strategy.plan(
        jnp.asarray(np.stack([older, oldest]))[None, :, :, None],
        jnp.asarray(known)[None],
        jnp.asarray(NEW)[None, :, None],
        jnp.array([True]),
        jnp.array([True]),
    )
    for k in range(H):
        said = [oldest[k]] * (k < 4) + [older[k]] * (k < 6) + [NEW[k]] * (k >= 1)
        weights = np.exp(-0.5 * np.arange(len(said)))
        wanted = (weights * said).sum() / weights.sum()
        assert there[0, k] and float(plan[0, k, 0]) == pytest.approx(wanted, rel=1e-5)


def test_a_quintic_has_position_velocity_and_no_acceleration_at_both_ends():
    """Against the solution of these six conditions."""
    h, begin, end = 5.0, (1.0, 0.4), (-2.0, 0.7)
    powers = np.arange(6)

    def rows(t):
        """Position, velocity and acceleration of each power of t."""
        first = powers * t ** np.maximum(powers - 1, 0)
        second = powers * (powers - 1) * t ** np.maximum(powers - 2, 0)
        return np.array([t**powers, first, second])

    weights = np.linalg.solve(np.vstack([rows(0.0), rows(h)]), [*begin, 0, *end, 0])
    s = np.linspace(0, 1, 11)
    found = quintic(*(tuple(jnp.array([[x]]) for x in pair) for pair in (begin, end)), s, h)
    np.testing.assert_allclose(found[0, :, 0], (h * s[:, None]) ** powers @ weights, atol=1e-5)


def test_rail_is_smoother_at_the_border_than_naive():
    old, known = np.linspace(0, 1, H), np.ones(H, bool)
    naive, rail = (np.array(planned(n, 2, old=old, known=known)) for n in ("naive", "rail"))
    assert np.abs(np.diff(rail)).max() < np.abs(np.diff(naive)).max()
    assert rail[0] == naive[0] and list(rail[4:]) == list(naive[4:])


@pytest.mark.parametrize("wrong", [("soon", 1, 4), ("naive", -1, 4), ("naive", 1, 9)])
def test_what_is_no_strategy_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Strategy(*wrong, H)
