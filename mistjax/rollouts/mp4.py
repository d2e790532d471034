"""Videos that any browser plays: H.264, yuv420p, index at the front.

PyAV is imported where it is used: a run without videos does without it.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


def write_mp4(
    path: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: float = 10.0, crf: int = 18
) -> None:
    """Encodes RGB frames.

    Odd sizes lose their last row or column (the format has half-resolution colour). `crf` is x264's
    quality: 0 is lossless, 18 looks so.
    """
    import av

    height, width = (size - size % 2 for size in frames.shape[1:3])
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def read_mp4(path: Path) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """Decodes all frames (RGB) and the frame rate.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a video, or damaged.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = stream.average_rate
    except FileNotFoundError:
        raise
    except (FFmpegError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a video, or is damaged: {error}") from None
    if not frames or rate is None:
        raise ValueError(f"{path} is not a video that write_mp4 wrote: it has no frames.")
    return np.stack(frames), float(rate)


def enlarge(
    frames: UInt8[np.ndarray, "t h w 3"], height: int = 384
) -> UInt8[np.ndarray, "t big_h big_w 3"]:
    """Repeats pixels by the largest whole factor that stays within `height`."""
    factor = max(1, height // frames.shape[1])
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)
