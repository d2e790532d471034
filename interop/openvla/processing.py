"""From a camera picture and an instruction to what the network reads.

Everything is PIL and numpy. `LIBERO_IMAGE` repeats what the checkpoints fine-tuned on LIBERO were
trained with; `square` alone is what openvla-7b expects.

Source: OpenVLA, arXiv 2406.09246, section 3.1 and appendix D.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
PROMPT_V01 = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. "
    "USER: What action should the robot take to {instruction}? ASSISTANT:"
)


def prompt_text(instruction: str, template: str = PROMPT) -> str:
    """The prompt as published checkpoints were trained to read it: instruction in lower case."""
    return template.replace("{instruction}", instruction.lower())


def square(image: UInt8[np.ndarray, "h w 3"], size: int = 224) -> UInt8[np.ndarray, "s s 3"]:
    """Bicubic, antialiased, without regard to the aspect ratio."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def pixel_values(
    image: UInt8[np.ndarray, "s s 3"], statistics: Sequence[tuple[Sequence[float], Sequence[float]]]
) -> Float[np.ndarray, "c s s"]:
    """Three channels for each tower, normalised with that tower's (mean, std)."""
    unit = image.astype(np.float32) / np.float32(255)
    towers = [
        (unit - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
        for mean, std in statistics
    ]
    return np.concatenate(towers, axis=-1).transpose(2, 0, 1)


def rotate_180(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """LIBERO's cameras are upside down."""
    return np.ascontiguousarray(image[::-1, ::-1])


def jpeg_roundtrip(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Encodes and decodes as JPEG (quality 95, 4:2:0): the training images were stored so.

    The original decodes with a faster, less accurate transform: single pixels differ by up to 17 of
    255 on a noisy picture.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    return np.asarray(Image.open(buffer).convert("RGB"))


def lanczos3(image: UInt8[np.ndarray, "h w 3"], size: int = 224) -> UInt8[np.ndarray, "s s 3"]:
    """Antialiased Lanczos-3 resize with TensorFlow's sample positions and normalised weights."""
    rows = _lanczos_matrix(image.shape[0], size)
    columns = _lanczos_matrix(image.shape[1], size)
    resized = np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float32), columns, optimize=True)
    return np.clip(np.round(resized), 0, 255).astype(np.uint8)


def center_crop(image: UInt8[np.ndarray, "s s 3"], area: float = 0.9) -> UInt8[np.ndarray, "s s 3"]:
    """Keeps the central `area` of the picture and stretches it back, bilinear with aligned corners.

    Needed for checkpoints that were trained with random crops.
    """
    unit = image.astype(np.float32) * np.float32(1 / 255)
    for axis in (0, 1):
        unit = _bilinear(unit, np.float32(np.sqrt(np.float32(area))), axis)
    return np.floor(np.clip(unit, 0, 1) * np.float32(255.5)).astype(np.uint8)


LIBERO_IMAGE = (rotate_180, jpeg_roundtrip, lanczos3, center_crop)
"""A raw LIBERO camera frame to the picture that fine-tuned checkpoints saw, in this order."""


@functools.lru_cache(maxsize=8)
def _lanczos_matrix(source: int, target: int) -> Float[np.ndarray, "t s"]:
    scale = source / target
    width = max(scale, 1.0)
    center = (np.arange(target) + 0.5) * scale
    x = (np.arange(source)[None] + 0.5 - center[:, None]) / width
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _bilinear(
    unit: Float[np.ndarray, "h w c"], side: np.floating, axis: int
) -> Float[np.ndarray, "h w c"]:
    size = unit.shape[axis]
    first = (np.float32(1) - side) / np.float32(2)
    scale = side * np.float32(size - 1) / np.float32(size - 1)
    at = first * np.float32(size - 1) + np.arange(size, dtype=np.float32) * scale
    low = np.floor(at).astype(int)
    part = (at - low).astype(np.float32)
    part = part[:, None, None] if axis == 0 else part[None, :, None]
    below, above = np.take(unit, low, axis), np.take(unit, np.minimum(low + 1, size - 1), axis)
    return below + (above - below) * part
