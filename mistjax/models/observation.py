"""What a model sees: the `Observation` pytree, with openpi's names and conventions."""

from __future__ import annotations

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mistjax.models.config import FastConfig, Pi0Config
from mistjax.models.inpainting import Pending

AnyArray = Array | np.ndarray


@flax.struct.dataclass
class Observation:
    """A batch of model inputs.

    Attributes:
        images: camera name -> image in [-1, 1]. The order of the cameras is the model's
            `image_keys`.
        image_masks: camera name -> whether the camera is there, for each batch element.
        state: normalised robot state, padded with zeros to the model's action dimension.
        tokenized_prompt: token ids, padded on the right.
        tokenized_prompt_mask: True where a token is real.
        prompt_embedding: when given, stands in for the embedded `tokenized_prompt` (before the
            sqrt(width) scale), so that attribution can differentiate with respect to words.
        image_embedding: when given, stands in for what the vision tower makes of `images`: the
            projected tokens of all cameras, so that they can be repaired.
        state_mask: whether the state is read, for each batch element; None reads it everywhere.
        pending: what is executed while the inference runs, for flow policies; None for nothing.
    """

    images: dict[str, Float[AnyArray, "b h w 3"]]
    image_masks: dict[str, Bool[AnyArray, " b"]]
    state: Float[AnyArray, "b s"]
    tokenized_prompt: Int[AnyArray, "b l"]
    tokenized_prompt_mask: Bool[AnyArray, "b l"]
    prompt_embedding: Float[AnyArray, "b l d"] | None = None
    image_embedding: Float[AnyArray, "b n d"] | None = None
    state_mask: Bool[AnyArray, " b"] | None = None
    pending: Pending | None = None

    @property
    def batch_size(self) -> int:
        return self.state.shape[0]


def check_observation(config: Pi0Config | FastConfig, obs: Observation) -> None:
    """ValueError where the arrays of an observation do not have the model's sizes: JAX would
    broadcast or clamp them. Shapes only, so inside jit too.
    """
    batch, keys, side = obs.batch_size, config.image_keys, config.image_size
    if missing := [key for key in keys if key not in obs.images or key not in obs.image_masks]:
        raise ValueError(f"the observation lacks the cameras {missing}; it has {list(obs.images)}.")
    expected = {
        **{f"images[{key!r}]": (obs.images[key], (batch, side, side, 3)) for key in keys},
        **{f"image_masks[{key!r}]": (obs.image_masks[key], (batch,)) for key in keys},
        "tokenized_prompt": (obs.tokenized_prompt, (batch, config.max_token_len)),
        "tokenized_prompt_mask": (obs.tokenized_prompt_mask, (batch, config.max_token_len)),
    }
    if obs.prompt_embedding is not None:
        size = (batch, config.max_token_len, config.vlm.width)
        expected["prompt_embedding"] = obs.prompt_embedding, size
    if obs.image_embedding is not None:
        size = (batch, config.num_image_tokens, config.vlm.width)
        expected["image_embedding"] = obs.image_embedding, size
    if obs.state_mask is not None:
        if not isinstance(config, Pi0Config) or config.pi05:
            raise ValueError("state_mask: the state of this model is in its prompt; mask it there.")
        expected["state_mask"] = obs.state_mask, (batch,)
    if obs.pending is not None:
        if not isinstance(config, Pi0Config):
            raise ValueError("pending: only a flow policy (pi0, pi0.5) can be guided by it.")
        size = (batch, config.action_horizon, config.action_dim)
        expected["pending.actions"] = obs.pending.actions, size
        expected["pending.weight"] = obs.pending.weight, size[:2]
    if isinstance(config, Pi0Config):  # pi0-FAST reads the state in its prompt
        expected["state"] = obs.state, (batch, config.action_dim)
    for name, (array, shape) in expected.items():
        if np.shape(array) != shape:
            raise ValueError(f"{name} has shape {np.shape(array)}: the model takes {shape}.")
