"""Raw observations to model inputs: cameras, images, delta actions. What openpi's data rules say.

Each rule is a small frozen dataclass or function; `PiPolicy.prepare` and `finish` apply them in the
order in which a policy is built. What is not a robot's observation is refused here, by its key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mistjax.models.normalize import AnyArray, pad_to
from mistjax.models.tokenizers import clean_prompt

Rgb = UInt8[np.ndarray, "h w 3"]


def rgb(image: Any, name: str = "image") -> Rgb:
    """A camera picture as uint8 [h,w,3]; [3,h,w] (ALOHA) is transposed.

    Raises:
        ValueError: anything else, floats included: their range cannot be known.
    """
    picture = _array(image, name)
    if picture.ndim == 3 and picture.shape[0] == 3 and picture.shape[-1] != 3:
        picture = picture.transpose(1, 2, 0)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or not picture.size:
        raise ValueError(
            f"{name} is {picture.dtype} {list(picture.shape)}: expected uint8 [height, width, 3] "
            "or [3, height, width] from 0 to 255."
        )
    return picture


def numbers(value: Any, name: str) -> Float[np.ndarray, " n"]:
    """A vector or a single number as float32 [n]; they need not be finite.

    Raises:
        ValueError: text, several vectors, or something without numbers.
    """
    array = _array(value, name)
    if array.dtype.kind in "SUMmc" or array.ndim > 1:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}: expected one vector.")
    try:
        with np.errstate(over="ignore"):
            return np.atleast_1d(array.astype(np.float32))
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {type(value).__name__}: expected one vector.") from None


def words(value: Any, name: str = "prompt") -> str:
    """A prompt as text; NumPy's strings and arrays of one string count as such.

    Raises:
        ValueError: bytes, nothing but spaces, or something else.
    """
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, str):
        kind = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{name} is {kind}: expected one text (str); decode bytes yourself.")
    if not clean_prompt(value).strip():
        raise ValueError(f"{name} is {str(value)!r}: it does not say what to do.")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{name} is {str(value)!r}: a lone surrogate is not a character.")
    return str(value)


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is a {type(value).__name__} of uneven rows, no array.") from None


def flatten(raw: Mapping[Any, Any]) -> dict[str, Any]:
    """A raw observation without nested dicts: ALOHA's pictures get keys like `images/cam_high`.

    Raises:
        ValueError: not a dict of names, or the same entry under two of them.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"a raw observation is a {type(raw).__name__}: expected a dict of names.")
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        if not isinstance(key, str):
            raise ValueError(f"a raw observation has the key {key!r}: expected text.")
        if isinstance(value, Mapping):
            inner = {f"{key}/{name}": v for name, v in flatten(value).items()}
        else:
            inner = {key: value}
        if twice := sorted(set(inner) & set(flat)):
            raise ValueError(f"the observation has {twice} twice: nested, and by the whole name.")
        flat |= inner
    return flat


def flat_batch(raw: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """The flat raw observations of a batch; ValueError where there is none, or as `flatten`."""
    if isinstance(raw, Mapping) or not len(raw):
        raise ValueError("expected raw observations, one dict each and at least one.")
    return [flatten(one) for one in raw]


def to_unit(image: UInt8[AnyArray, "*n 3"]) -> Float[AnyArray, "*n 3"]:
    """uint8 0..255 -> float32 [-1, 1]; NumPy and JAX arrays alike."""
    return image.astype(np.float32) / 255.0 * 2.0 - 1.0


def resize_with_pad(image: Rgb, height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Fits the picture into [height, width]: linear, aspect ratio kept, centred on black."""
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (height, width):
        return image
    ratio = max(old_width / width, old_height / height)
    # Truncated, not rounded: the published policies were trained on such pictures.
    new_height, new_width = max(1, int(old_height / ratio)), max(1, int(old_width / ratio))
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    padded = np.zeros((height, width, 3), np.uint8)
    padded[top : top + new_height, left : left + new_width] = np.asarray(resized)
    return padded


@dataclasses.dataclass(frozen=True)
class Cameras:
    """Picks, resizes and scales the pictures of one raw observation.

    Attributes:
        keys: model camera name -> key of the raw observation; None for a camera the robot lacks.
        size: side of the model's square pictures, in pixels.
        absent_mask: the mask of a lacking camera, which is seen as black: False (pi0, pi0.5: its
            tokens are never attended to) or True (pi0-FAST).
    """

    keys: Mapping[str, str | None]
    size: int
    absent_mask: bool = False

    def __call__(
        self, raw: Mapping[str, Any]
    ) -> tuple[dict[str, Float[np.ndarray, "{self.size} {self.size} 3"]], dict[str, bool]]:
        """Pictures in [-1, 1] and their masks, both by model camera name.

        Raises:
            ValueError: a named camera is missing from `raw`, or is not a uint8 picture.
        """
        black = np.zeros((self.size, self.size, 3), np.uint8)
        images, masks = {}, {}
        for name, key in self.keys.items():
            if key is None:
                image = black
            elif key in raw:
                image = resize_with_pad(rgb(raw[key], key), self.size, self.size)
            else:
                raise ValueError(
                    f"camera {name!r} reads {key!r}, which the observation lacks; it has "
                    f"{sorted(raw)}. Map it to None if the robot has no such camera."
                )
            images[name] = to_unit(image)
            masks[name] = self.absent_mask if key is None else True
        return images, masks

    def batch(
        self, pictures: Mapping[str, UInt8[jax.Array, "b h w 3"]], batch: int
    ) -> tuple[dict[str, AnyArray], dict[str, AnyArray]]:
        """The same of `batch` observations whose pictures have the model's size, inside jit.

        Raises:
            ValueError: a named camera is missing, or its pictures have another size.
        """
        images, masks = {}, {}
        for name, key in self.keys.items():
            if key is not None and key not in pictures:
                raise ValueError(f"camera {name!r} reads {key!r}; there are {sorted(pictures)}.")
            shape = (batch, self.size, self.size, 3)
            image = jnp.zeros(shape, jnp.uint8) if key is None else pictures[key]
            if image.shape != shape:
                raise ValueError(
                    f"{key} is {list(image.shape)}: expected {list(shape)}. Draw pictures in the "
                    "model's size."
                )
            images[name] = to_unit(image)
            masks[name] = jnp.full(batch, self.absent_mask if key is None else True)
        return images, masks


@dataclasses.dataclass(frozen=True)
class DeltaActions:
    """Actions relative to the state that they start from, made absolute.

    Attributes:
        mask: which leading dimensions are relative; the others (usually the gripper) and those
            beyond the mask stay absolute. LIBERO: six times True, then False.
    """

    mask: tuple[bool, ...]

    def to_absolute(
        self, actions: Float[AnyArray, "*b h a"], state: Float[AnyArray, "*b s"]
    ) -> Float[AnyArray, "*b h a"]:
        """Raises ValueError where actions or state have fewer dimensions than the mask."""
        dims = len(self.mask)
        if min(actions.shape[-1], state.shape[-1]) < dims:
            raise ValueError(
                f"the delta mask has {dims} dimensions; actions have {actions.shape[-1]}, the "
                f"state has {state.shape[-1]}: both need at least as many."
            )
        xp = jnp if isinstance(state, jax.Array) else np
        relative = xp.where(xp.array(self.mask), state[..., :dims], 0).astype(actions.dtype)
        return actions + pad_to(relative, actions.shape[-1])[..., None, :]


def delta_mask(*runs: int) -> tuple[bool, ...]:
    """Runs of relative (positive) and absolute (negative) dimensions: `delta_mask(6, -1)`."""
    return tuple(run > 0 for run in runs for _ in range(abs(run)))
