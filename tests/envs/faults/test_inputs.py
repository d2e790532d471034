"""Each fault of a picture or a state does what it is called, from its onset on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.envs.faults.inputs import (
    PICTURES,
    STATES,
    as_pixels,
    key_of,
    patch_place,
    remember,
    see,
)

KEY = key_of(3)
LOOKS = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.float32)
STATE = np.array([0.07, -0.02, 0.06, 0.02, 1.0], np.float32)


look_at = jax.jit(see, static_argnums=0)


def watch(kind, shown, strength=1.0, onset=4):
    """What is delivered at each look."""
    memory, delivered = remember(shown[0]), []
    for look, now in enumerate(shown):
        out, memory = look_at(kind, memory, now, strength, KEY, look >= onset)
        delivered.append(np.asarray(out))
    return np.stack(delivered)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_it_was_before_the_onset_and_at_strength_zero(name):
    assert np.array_equal(watch(PICTURES[name], LOOKS)[:4], LOOKS[:4])
    np.testing.assert_allclose(watch(PICTURES[name], LOOKS, 0.0), LOOKS, atol=1e-3)


@pytest.mark.parametrize("name", PICTURES)
def test_every_camera_fault_shows(name):
    changed = np.abs(watch(PICTURES[name], LOOKS)[4:] - LOOKS[4:]).max((1, 2, 3))
    assert changed.max() > 50


@pytest.mark.parametrize("name", STATES)
def test_a_state_fault_moves_the_position_only(name):
    shown = STATE + 0.01 * np.arange(8)[:, None] * np.array([1, 1, 1, 0, 0])
    shown = shown.astype(np.float32)
    seen = watch(STATES[name], shown)
    assert np.array_equal(seen[:4], shown[:4])
    assert np.abs(seen[5:, :3] - shown[5:, :3]).max() > 4e-3
    assert np.array_equal(seen[:, 3:], shown[:, 3:])
    np.testing.assert_allclose(watch(STATES[name], shown, 0.0), shown)


def test_a_frozen_camera_shows_the_last_look_before_the_onset():
    assert (watch(PICTURES["frozen"], LOOKS)[4:] == LOOKS[3]).all()


@pytest.mark.parametrize(("strength", "late"), [(0.34, 1), (1.0, 3)])
def test_a_delayed_camera_is_late_by_a_fixed_number_of_looks(strength, late):
    assert np.array_equal(
        watch(PICTURES["delayed"], LOOKS, strength)[4:], LOOKS[4 - late : 8 - late]
    )


def test_a_camera_that_drops_frames_repeats_what_it_delivered_last():
    seen = watch(PICTURES["dropped"], LOOKS)
    for look in range(4, 8):
        assert any(np.array_equal(seen[look], other) for other in (LOOKS[look], seen[look - 1]))
    assert sum(np.array_equal(a, b) for a, b in zip(seen[4:], LOOKS[4:], strict=True)) < 4


def test_a_drift_grows_by_the_same_step_at_each_look():
    seen = watch(STATES["drifting"], np.stack([STATE] * 8))
    away = np.abs(seen - STATE).max(1)
    np.testing.assert_allclose(away[4:], [0.008, 0.016, 0.024, 0.032], atol=1e-6)


def test_a_patch_is_where_it_says():
    top, left, side = (int(v) for v in patch_place(16, 16, 0.75, KEY))
    seen = watch(PICTURES["patch"], LOOKS, 0.75)[5]
    assert side == 6
    assert (seen[top : top + side, left : left + side] == 60).all()
    assert (seen != LOOKS[5]).any(-1).sum() <= side**2


def test_a_seed_decides_the_direction_whatever_jax_is_set_to():
    first = watch(STATES["offset"], np.stack([STATE] * 5))
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        again = watch(STATES["offset"], np.stack([STATE] * 5))
    assert np.abs(first[4] - STATE).max() == pytest.approx(0.05)
    assert np.array_equal(first, again)


def test_all_faults_are_one_program_with_kind_and_strength_as_arrays():
    kinds = tuple(PICTURES.values())

    @jax.jit
    def look(which, strength, active):
        memory = remember(LOOKS[0])

        def one(kind):
            return lambda: see(kind, memory, LOOKS[1], strength, KEY, active)[0]

        return jax.lax.switch(which, [one(kind) for kind in kinds])

    for which, name in enumerate(PICTURES):
        alone, _ = look_at(PICTURES[name], remember(LOOKS[0]), LOOKS[1], 0.7, KEY, True)
        np.testing.assert_allclose(look(which, 0.7, True), alone, atol=1e-3)
    assert look._cache_size() == 1
    assert as_pixels(jnp.array([[[-3.0, 300.0, 1.4]]])).tolist() == [[[0, 255, 1]]]
