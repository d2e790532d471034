"""Raw observations to model inputs, and those to what the network reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from interop.openvla import processing
from interop.openvla.config import OpenVLAConfig
from interop.openvla.generation import Inputs
from interop.openvla.model import OpenVLA
from mistjax.models.observation import Observation
from mistjax.models.tokenizers import PromptTokenizer
from mistjax.models.transforms import rgb, to_unit
from mistjax.policies.protocol import RawObs

PictureStep = Callable[[UInt8[np.ndarray, "_ _ 3"]], UInt8[np.ndarray, "_ _ 3"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """How a policy sees.

    Attributes:
        tokenizer: of the prompts; its `max_tokens` is the padded length, BOS included.
        cameras: model camera -> raw observation key, in the order of the images; None for a camera
            that the robot lacks (its patches are masked).
        image_steps: uint8 picture -> uint8 picture, one after the other, ending at 224x224.
        template: of the prompt.
    """

    tokenizer: PromptTokenizer
    cameras: Mapping[str, str | None]
    image_steps: Sequence[PictureStep] = (processing.square,)
    template: str = processing.PROMPT

    def __call__(
        self,
        raw: Sequence[RawObs],
        instructions: Sequence[str],
        state: Float[np.ndarray, "b s"],
        config: OpenVLAConfig,
    ) -> Observation:
        """Flat raw observations, one each, with what they ask for and the normalised state.

        Raises:
            ValueError: a camera is missing, a picture is not uint8 RGB, or a prompt is too long.
        """
        size = config.towers[0].image_size
        prompts = [self._tokens(text, config.text.bos_token_id) for text in instructions]
        return Observation(
            images={
                name: np.stack([self._picture(r, key, size) for r in raw])
                for name, key in self.cameras.items()
            },
            image_masks={
                name: np.full(len(raw), key is not None) for name, key in self.cameras.items()
            },
            state=state,
            tokenized_prompt=np.stack([tokens for tokens, _ in prompts]),
            tokenized_prompt_mask=np.stack([mask for _, mask in prompts]),
        )

    def inputs(self, model: OpenVLA, obs: Mapping[str, Any]) -> Inputs:
        """An observation's tensors to what the network reads; differentiable.

        Args:
            model: embeds the prompt, unless the observation has a `prompt_embedding`.
            obs: fields of an `Observation` by name.
        """
        device = model.device
        text, patches = obs.get("prompt_embedding"), obs.get("image_embedding")
        if text is None:
            text = model.embed_tokens(obs["tokenized_prompt"].long().to(device))
        pictures = torch.stack([obs["images"][name] for name in self.cameras], dim=1).to(device)
        unit = (pictures + 1) / 2
        towers = [
            (unit - unit.new_tensor(tower.mean)) / unit.new_tensor(tower.std)
            for tower in model.config.towers
        ]
        return Inputs(
            text.to(device, model.dtype),
            obs["tokenized_prompt_mask"].to(device),
            torch.cat(towers, dim=-1).permute(0, 1, 4, 2, 3).flatten(1, 2),
            torch.stack([obs["image_masks"][name] for name in self.cameras], dim=1).to(device),
            obs["state"].to(device),
            None if patches is None else patches.to(device, model.dtype),
        )

    def _tokens(self, instruction: str, bos: int):
        text = processing.prompt_text(instruction, self.template)
        return self.tokenizer.pad([bos, *self.tokenizer.encode(text)])

    def _picture(self, raw: RawObs, key: str | None, size: int) -> Float[np.ndarray, "s s 3"]:
        if key is None:
            return np.zeros((size, size, 3), np.float32)
        if key not in raw:
            raise ValueError(f"the observation has no {key!r}: it has {sorted(raw)}.")
        picture = rgb(raw[key], key)
        for step in self.image_steps:
            picture = step(picture)
        if picture.shape[:2] != (size, size):
            raise ValueError(
                f"image_steps made {key} {picture.shape[:2]}: they must end at {(size, size)}; add "
                "processing.square."
            )
        return np.asarray(to_unit(picture))
