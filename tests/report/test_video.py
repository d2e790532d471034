import dataclasses

import numpy as np
import pytest

from mistjax.report.video import broken, overlay, status, write_overlay
from mistjax.rollouts.mp4 import read_mp4


def test_the_label_follows_the_monitor(trace):
    words = [status(trace(), step)[0] for step in range(9)]
    assert words == [
        *["watching"] * 4,
        *["ALARM"] * 2,
        *["ALARM · steering"] * 2,
        "failed: wrong cell",
    ]
    assert status(trace(succeeded=True), 8)[0] == "success"
    assert status(trace(success=None, error="Traceback"), 8)[0] == "crashed"
    assert status(trace(monitored=False), 3)[0] == ""


def test_a_fault_is_marked_from_its_onset_on(trace):
    inputs = {
        "input_score": np.array([0.1, 0.2, 3.0, 3.0]),
        "input_threshold": np.full(4, 1.4),
        "unsound": np.array([False, False, True, True]),
        "edited": np.array([False, False, False, True]),
        "info": {"fault": "front_frozen", "fault_onset": 3},
    }
    watched = trace(monitored=False, **inputs)
    assert [broken(watched, step) for step in (2, 3)] == ["", "fault: front frozen"]
    assert [status(watched, step)[0] for step in (2, 4, 6)] == [
        "watching", "ALARM", "ALARM · repairing",
    ]  # fmt: skip
    frames = np.full((9, 64, 128, 3), 90, np.uint8)
    later = dataclasses.replace(watched, info={"fault": "front_frozen", "fault_onset": 5})
    assert (overlay(watched, frames)[2] != overlay(later, frames)[2]).any()
    clean = dataclasses.replace(watched, info={})
    assert (overlay(clean, frames)[2] != overlay(later, frames)[2]).any()


def test_the_score_is_drawn_only_as_far_as_it_is_known(trace):
    frames = np.full((9, 64, 128, 3), 90, np.uint8)
    late = dataclasses.replace(trace(), score=np.array([0.1, 0.2, 0.7, 0.6]))
    drawn, other = overlay(trace(), frames), overlay(late, frames)
    np.testing.assert_array_equal(drawn[:4], other[:4])
    assert (drawn[4] != other[4]).any()


def test_the_picture_itself_is_not_resampled(trace):
    frames = np.random.default_rng(0).integers(0, 255, (9, 64, 128, 3)).astype(np.uint8)
    drawn = overlay(trace(monitored=False), frames)[3]
    top = drawn.shape[0] - 384
    np.testing.assert_array_equal(drawn[top:], frames[3].repeat(6, 0).repeat(6, 1))


def test_the_video_plays_every_step_and_holds_the_end(trace, tmp_path):
    write_overlay(tmp_path / "v.mp4", trace(), trace().frames, fps=10)
    frames, fps = read_mp4(tmp_path / "v.mp4")
    assert fps == 10
    assert len(frames) == 9 + 12


def test_scores_that_are_not_numbers_are_drawn_without_an_error(trace):
    odd = trace(score=np.array([np.nan, 0.2, np.inf, np.nan]), threshold=np.full(4, np.inf))
    assert overlay(odd, odd.frames).shape[0] == 9


def test_frames_of_another_episode_are_refused(trace):
    with pytest.raises(ValueError, match="8 frames for an episode of 8 steps"):
        overlay(trace(), trace().frames[:-1])
