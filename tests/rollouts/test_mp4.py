"""What the module on videos promises."""

import numpy as np
import pytest

from mistjax.rollouts.mp4 import enlarge, read_mp4, write_mp4


def test_odd_sizes_lose_their_last_row_or_column(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 33, 47, 3), dtype=np.uint8)
    write_mp4(tmp_path / "v.mp4", frames, 12.5, crf=0)
    seen, fps = read_mp4(tmp_path / "v.mp4")
    assert seen.shape == (3, 32, 46, 3) and fps == 12.5


def test_pixels_are_repeated_by_the_largest_whole_factor_that_fits():
    frames = np.arange(2 * 100 * 5 * 3, dtype=np.uint8).reshape(2, 100, 5, 3)
    large = enlarge(frames, 384)
    assert large.shape == (2, 300, 15, 3)
    np.testing.assert_array_equal(large[:, 1::3, 1::3], frames)
    np.testing.assert_array_equal(enlarge(frames, 50), frames)


@pytest.mark.parametrize("content", [b"", b"no video", b"\x00" * 1000])
def test_a_file_that_is_no_video_is_named(tmp_path, content):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"v\.mp4 is not a video"):
        read_mp4(tmp_path / "v.mp4")
    with pytest.raises(FileNotFoundError):
        read_mp4(tmp_path / "none.mp4")
