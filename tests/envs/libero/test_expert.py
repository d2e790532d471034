"""The expert measures objects and disturbs its demonstrations as it says; scenes: test_scenes."""

import numpy as np
import pytest

from mistjax.envs.libero.demos import bursts, turns
from mistjax.envs.libero.expert import Errand, in_order
from mistjax.envs.libero.grasps import measure, turn_to_fit


def box(length, width, height, yaw):
    corners = np.array(np.meshgrid([-1, 1], [-1, 1], [0, 2])).reshape(3, -1).T / 2
    turn = [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
    return corners * [length, width, height] @ np.array(turn).T + [0.3, -0.2, 0.1]


@pytest.mark.parametrize("turn", [0, 6, 17, 30])
def test_a_box_is_gripped_across_its_narrow_side(turn):
    yaw = turn * np.pi / 36
    shape = measure(box(0.08, 0.03, 0.05, yaw))
    assert shape.yaw == pytest.approx((yaw + np.pi / 2) % np.pi)
    assert shape.width == pytest.approx(0.03) and shape.length == pytest.approx(0.08)
    assert shape.centre == pytest.approx([0.3, -0.2, 0.15]) and shape.bottom == pytest.approx(0.1)


def test_a_can_is_gripped_without_turning():
    angles = np.linspace(0, 2 * np.pi, 100)
    can = np.stack([0.03 * np.cos(angles), 0.03 * np.sin(angles), 0.1 * (angles > 3)], axis=1)
    for near in (0.4, -1.2, 2.0):
        off = (measure(can, near).yaw - near + np.pi / 2) % np.pi - np.pi / 2
        assert abs(off) <= np.pi / 72 + 1e-9


SLOT = np.array([0.0278, 0.0622, 0.06])  # half sizes of a compartment for a book
UPSIDE_DOWN = np.diag([1.0, -1.0, -1.0])
ON_ITS_SIDE = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # its x is vertical


@pytest.mark.parametrize("turn", [-15, -4, 0, 9])
def test_a_book_is_turned_to_fit_its_compartment(turn):
    yaw = turn * np.pi / 36
    book = measure(box(0.113, 0.03, 0.14, yaw))  # narrow across `yaw`
    turned = turn_to_fit(book, SLOT, UPSIDE_DOWN)
    assert abs(turned) <= np.pi / 2 and np.cos(book.yaw + turned) ** 2 == pytest.approx(1)


@pytest.mark.parametrize(
    ("length", "half", "axes"),
    [
        (0.05, SLOT, np.eye(3)),  # fits either way
        (0.13, SLOT, np.eye(3)),  # fits neither way
        (0.113, np.array([0.07, 0.07, 0.06]), np.eye(3)),  # a square
        (0.113, np.array([0.02, 0.07, 0.06]), ON_ITS_SIDE),  # a square that lies on its side
    ],
)
def test_what_needs_no_turn_or_gains_nothing_by_it_is_not_turned(length, half, axes):
    assert turn_to_fit(measure(box(length, 0.03, 0.14, 0.4)), half, axes) == 0


def test_what_others_are_put_on_is_put_down_first():
    upper, lower = Errand("On", "bowl_1", "bowl_2"), Errand("In", "bowl_2", "tray_region")
    assert in_order([upper, lower]) == in_order([lower, upper]) == [lower, upper]


def test_noise_comes_in_short_bursts_and_spares_rotation_and_gripper():
    episodes = [bursts(np.random.default_rng(seed), 280) for seed in range(200)]
    disturbed = [noise for noise in episodes if noise.any()]
    assert 0.6 < len(disturbed) / len(episodes) < 0.8
    for noise in disturbed:
        assert not noise[:, 3:].any()
        edges = np.flatnonzero(np.diff(noise.any(axis=1).astype(int), prepend=0, append=0))
        lengths, gaps = edges[1::2] - edges[::2], edges[2::2] - edges[1:-1:2]
        assert lengths.max() <= 4 and gaps.min() >= 12


def test_another_driver_has_turns_and_leaves_the_expert_time():
    for seed in range(200):
        theirs = turns(np.random.default_rng(seed), 288)
        edges = np.flatnonzero(np.diff(theirs.astype(int), prepend=0, append=0))
        lengths, gaps = edges[1::2] - edges[::2], edges[2::2] - edges[1:-1:2]
        assert len(lengths) and set(lengths) <= {15, 30, 45, 60} and set(gaps) <= {15, 30}
        assert edges[-1] < 144 + 60
