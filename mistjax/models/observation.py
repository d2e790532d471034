"""What a model sees: the `Observation` pytree, with openpi's names and conventions."""

from __future__ import annotations

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

AnyArray = Array | np.ndarray


@flax.struct.dataclass
class Observation:
    """A batch of model inputs.

    Attributes:
        images: camera name -> image in [-1, 1]. The order of the cameras is the model's
            `image_keys`.
        image_masks: camera name -> whether the camera is present in that row.
        state: normalised robot state, padded with zeros to the model's action dimension.
        tokenized_prompt: token ids, padded on the right.
        tokenized_prompt_mask: True where a token is real.
        prompt_embedding: when given, stands in for the embedded `tokenized_prompt` (before the
            sqrt(width) scale), so that attribution can differentiate with respect to words.
    """

    images: dict[str, Float[AnyArray, "b h w 3"]]
    image_masks: dict[str, Bool[AnyArray, " b"]]
    state: Float[AnyArray, "b s"]
    tokenized_prompt: Int[AnyArray, "b l"]
    tokenized_prompt_mask: Bool[AnyArray, "b l"]
    prompt_embedding: Float[AnyArray, "b l d"] | None = None

    @property
    def batch_size(self) -> int:
        return self.state.shape[0]
