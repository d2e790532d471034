"""The expert measures objects and disturbs its demonstrations as it says; scenes: test_scenes."""

import numpy as np
import pytest

from mistjax.envs.libero.demos import bursts, turns
from mistjax.envs.libero.grasps import measure


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
